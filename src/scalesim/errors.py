"""Every error a user can meet. Each message gives the value, the rule and the knob."""

from __future__ import annotations


class ScaleSimError(Exception):
    """Base of all errors that ScaleSim raises on purpose."""


class ConfigError(ScaleSimError, ValueError):
    """A setting is impossible, or contradicts another."""


class UnsupportedModelError(ScaleSimError, ValueError):
    """The model folder asks for something that ScaleSim does not run."""


class WeightsError(ScaleSimError, ValueError):
    """A weight file is missing, unsafe, or does not fit its config; names the tensor or the
    file."""


class AttachmentError(ScaleSimError):
    """State that a request needs beside its prompt cannot be had, and will not be."""


class AdapterError(AttachmentError, ValueError):
    """An adapter is missing, unsafe, in use, or asks for what ScaleSim does not run; names the file
    and the reason."""


class ModelError(AttachmentError, ValueError):
    """A model cannot join an engine, or is unknown to it; names the model and the reason."""


class StateError(ScaleSimError, ValueError):
    """A value cannot be kept as an agent's state; names the value, the rule and the knob."""


class StateLostError(ScaleSimError, LookupError):
    """A value that an agent kept was lost with the engine's memory; assign it again."""


class RequestError(ScaleSimError, ValueError):
    """A request is not valid; nothing was allocated for it."""


class PromptTooLongError(RequestError):
    """The prompt and its output do not fit the model's context or the device pool."""


class StructureError(RequestError):
    """A JSON schema, regular expression or grammar cannot be compiled, is over a limit, or left the
    model no token to say."""


class TraceError(ScaleSimError, ValueError):
    """A trace file cannot be read; names the line and what is wrong with it."""


class SnapshotError(ScaleSimError, ValueError):
    """A snapshot cannot be written, or none in its folder can be read; names the file and the
    reason."""


class UnknownAgentError(ScaleSimError, KeyError):
    """No agent of this name was created on this engine."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0]) if self.args else ""


class EngineClosedError(ScaleSimError, RuntimeError):
    """The engine was closed, or died; the cause is chained."""


class EngineModeError(ScaleSimError, RuntimeError):
    """``step()`` and the engine's own thread were both asked to drive the loop."""


class InternalError(ScaleSimError, RuntimeError):
    """Something broke inside the engine while it served this request, which ended for it; the
    engine goes on, and the request may be made again. The cause is chained where it is known."""


class KernelError(ScaleSimError, RuntimeError):
    """A kernel that the engine was given raised; what it raised is chained."""


class EngineFullError(ScaleSimError, RuntimeError):
    """As many requests are open as the engine takes; none of these was."""


class NumericalError(ScaleSimError, ArithmeticError):
    """The model gave logits that are not finite for this request."""


class RequestTimeoutError(ScaleSimError, TimeoutError):
    """The request's timeout passed; its pages are free."""


class RequestCancelledError(ScaleSimError):
    """The request was cancelled; its pages are free."""


class HintWarning(UserWarning):
    """A hint says nothing, and is ignored. Given once a source; ``Engine.source_scores`` counts the
    others."""


class SnapshotWarning(UserWarning):
    """A snapshot was restored in part: what is missing is computed again, or begins anew."""
