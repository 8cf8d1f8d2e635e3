"""One agent is fine-tuned while the others go on talking.

A tiny random model talks; PEFT trains one agent's adapter on an answer, on a thread of its own, and
gives the engine the new weights every few steps. What the others say does not change. Needs
``pip install transformers peft``.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import scalesim

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTION, ANSWER = list(range(40, 72)), [7, 3, 9, 3, 7, 1, 9, 1]
OTHERS, STEPS, EVERY = 6, 60, 10


def base_model(folder: Path) -> Any:
    """A tiny model with random weights, saved to ``folder``."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def train(model: Any, adapter: scalesim.Adapter, losses: list[float]) -> None:
    """Teach ``model`` to say ``ANSWER`` to ``QUESTION``; the engine's ``adapter`` follows."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    tokens = torch.tensor([QUESTION + ANSWER])
    labels = tokens.clone()
    labels[:, : len(QUESTION)] = -100  # the question is not learned
    for step in range(1, STEPS + 1):
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % EVERY == 0:  # between two calls of the agent; open calls keep what they have
            adapter.update(peft.get_peft_model_state_dict(model))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, lora = Path(folder, "base"), Path(folder, "pupil")
        torch.manual_seed(1)
        model = peft.get_peft_model(
            base_model(base),
            peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        model.save_pretrained(lora)
        settings: dict[str, Any] = {"device_memory": "8MB", "host_memory": "32MB"}
        with scalesim.Engine(base, device="cpu", dtype="float32", **settings) as engine:
            talk(engine, model, engine.adapters.add("pupil", lora))


def talk(engine: scalesim.Engine, model: Any, adapter: scalesim.Adapter) -> None:
    """All agents talk until the training is over."""
    pupil = engine.agent("pupil", adapter=adapter)
    others = [engine.agent(f"agent {index}") for index in range(OTHERS)]
    losses: list[float] = []
    heard: list[set[tuple[int, ...]]] = [set() for _ in others]
    said: list[tuple[int, ...]] = []
    trainer = threading.Thread(target=train, args=(model, adapter, losses))
    trainer.start()
    is_last = False
    while not is_last:
        is_last = not trainer.is_alive()  # one more round with the last weights
        requests = [
            agent.request(QUESTION[index:], max_tokens=len(ANSWER), temperature=0.0)
            for index, agent in enumerate([pupil, *others])
        ]
        replies = engine.run(requests)
        said.append(replies[0].token_ids)
        for texts, reply in zip(heard, replies[1:], strict=True):
            texts.add(reply.token_ids)
        engine.tick()
    trainer.join()
    print(f"{len(said)} rounds while training; loss {losses[0]:.2f} to {losses[-1]:.4f}")
    print(f"the pupil said {len(set(said))} different things, at last {list(said[-1])}")
    print(f"learned: {list(said[-1]) == ANSWER}")
    print(f"the others never changed: {all(len(texts) == 1 for texts in heard)}")


if __name__ == "__main__":
    main()
