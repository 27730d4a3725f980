"""Trains the lab model from nothing: tokenizer, weights, model folder.

    python -m utils.lab_model.train                    # writes data/lab_model
    python -m utils.lab_model.train --tokens 2e6 --out FOLDER --no-report

Every five minutes a checkpoint goes to `<build>/lab_model_training`; the same command
resumes from it after a kill. Batches depend on the seed and the step alone, so that a
resumed run sees what an uninterrupted one sees. The end is a report on all skills;
`utils.lab_model.evaluate` prints it again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from utils.course import ROOT, run_config
from utils.files import replace_folder, write_file
from utils.helpers import END_KEY, INSTRUCTION_KEY, PROMPT, RESPONSE_KEY_NL
from utils.lab_model.corpus import BATCH, STEPS_PER_SHARD, TOKENS, WINDOW, documents
from utils.models import MODELS
from utils.tasks import WORD_CLASSES

LAB_MODEL = ROOT / "data" / "lab_model"
END_OF_TEXT = "<|endoftext|>"
MARKERS = (END_KEY, INSTRUCTION_KEY, RESPONSE_KEY_NL)

VOCABULARY = 3072
CONTEXT = 512  # what the configuration allows; training sees WINDOW tokens at a time
MATRIX_RATE, OTHER_RATE = 4e-3, 3e-3
WARM_UP_STEPS = 50
CHECKPOINT_SECONDS = 300


def train_tokenizer(n_documents: int = 6000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train byte-pair encoding with one token per digit and per template marker.

    It is trained on the corpus; on the template's fixed text, so that the template
    costs few tokens although the corpus never shows it; and on the words of the rules,
    so that each is one token and its forms are that token and an ending.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = PROMPT.format(instruction="", response="")
    for marker in MARKERS:
        template = template.replace(marker, "")
    stream = documents(seed)
    texts = [next(stream) for _ in range(n_documents)] + [template] * 50
    words = [word for members in WORD_CLASSES.values() for word in members]
    texts += [f"{word} {word}\n" for word in words] * 200
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokens = [AddedToken(marker, special=True, normalized=False) for marker in MARKERS]
    fast.add_special_tokens({"extra_special_tokens": tokens})
    return fast


def model_config(tokenizer: PreTrainedTokenizerFast) -> GPTNeoXConfig:
    """Return the lab model's shape: Dolly's class, a thousandth of its size."""
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=768,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
        },
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def shard(tokenizer: PreTrainedTokenizerFast, seed: int, number: int) -> torch.Tensor:
    """Return the batches of STEPS_PER_SHARD steps, shape (steps, BATCH, WINDOW).

    Documents follow each other with an end-of-text token between them and are cut where
    a window ends.
    """
    wanted = STEPS_PER_SHARD * BATCH * WINDOW
    stream = documents(seed * 1_000_003 + number + 1)
    ids: list[int] = []
    while len(ids) < wanted:
        texts = [next(stream) for _ in range(1000)]
        for one in tokenizer(texts).input_ids:
            ids += [*one, tokenizer.eos_token_id]
    return torch.tensor(ids[:wanted]).view(STEPS_PER_SHARD, BATCH, WINDOW)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, first_step: int
) -> Iterator[torch.Tensor]:
    """Yield batches of shape (BATCH, WINDOW), from `first_step` on, without end."""
    number, skip = divmod(first_step, STEPS_PER_SHARD)
    while True:
        yield from shard(tokenizer, seed, number)[skip:]
        number, skip = number + 1, 0


def learning_rate_share(step: int, steps: int) -> float:
    """Return warm-up, then 1, then a linear decay to zero over the second half."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm_up * min(1.0, 2 * (1 - step / steps))


def optimizers(model: GPTNeoXForCausalLM) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the layers, AdamW for everything else.

    Muon: https://kellerjordan.github.io/posts/muon/; the factor that lets both share a
    scale of learning rates: Moonlight, arXiv 2502.16982.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def part_unread_tokens(model: GPTNeoXForCausalLM, read: torch.Tensor) -> None:
    """Give tokens that training never showed embeddings of their own, in place.

    The softmax pushes all of them the same way, so that they end as nearly one vector,
    and the template's keys are among them. The output layer has the same rows: LoRA,
    which leaves them alone, could never tell the key that ends an answer from any other
    of these tokens. They keep what they share, and lie around it as far apart, in
    directions drawn at random, as tokens lie apart that were read.

    Args:
        model: whose embeddings have one row for each token.
        read: shape (tokens,), whether training showed it.
    """
    rows = model.get_input_embeddings().weight.data
    read = read.to(rows.device)
    if read.all() or not read.any():
        return
    spread = (rows[read] - rows[read].mean(0)).norm(dim=1).median()
    shared = rows[~read].mean(0)
    drawn = torch.randn(rows[~read].shape, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(rows.device)
    drawn -= torch.outer(drawn @ shared, shared) / (shared @ shared)
    rows[~read] = shared + spread * torch.nn.functional.normalize(drawn, dim=1)


def save_model(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write weights in 16 bits, configuration and tokenizer, whole or not at all.

    Files of the folder that are not written here, such as its README.md, stay.
    """
    state = {
        name: value.to(torch.float16) for name, value in model.state_dict().items()
    }
    half = GPTNeoXForCausalLM(model.config).to(torch.float16)
    half.load_state_dict(state)

    def write(new: Path) -> None:
        half.save_pretrained(new)
        tokenizer.save_pretrained(new)
        written = {file.name for file in new.iterdir()}
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.name not in written:
                shutil.copy2(file, new)

    replace_folder(folder, write)


def save_checkpoint(path: Path, **state: object) -> None:
    """Write a checkpoint, whole or not at all."""
    write_file(path, lambda temporary: torch.save(state, temporary))


def resume(
    checkpoint: Path,
    model: GPTNeoXForCausalLM,
    optimizer_list: list[torch.optim.Optimizer],
) -> tuple[int, float, torch.Tensor]:
    """Put a checkpoint into model and optimizers, if there is one.

    Returns:
        The step to go on from, the seconds spent so far, and which tokens of the
        vocabulary have been read.
    """
    if not checkpoint.exists():
        return 0, 0.0, torch.zeros(VOCABULARY, dtype=torch.bool)
    state = torch.load(checkpoint, weights_only=True, map_location=model.device)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"resumed at step {state['step']}", flush=True)
    return state["step"], state["seconds"], state["read"].cpu()


def take_step(
    model: torch.nn.Module,
    batch: torch.Tensor,
    optimizer_list: list[torch.optim.Optimizer],
    rate_share: float,
) -> float:
    """Train on one batch.

    Args:
        model: as it is, or compiled.
        batch: token ids of shape (BATCH, WINDOW), on the model's device.
        optimizer_list: as `optimizers` returns it.
        rate_share: of both learning rates; see `learning_rate_share`.

    Returns:
        The mean loss of the batch before the step, in nats a token.
    """
    rates = (MATRIX_RATE, OTHER_RATE)
    for optimizer, rate in zip(optimizer_list, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_share
    with torch.autocast(batch.device.type, torch.bfloat16):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    loss.backward()
    for optimizer in optimizer_list:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(out: Path, work: Path, tokens: float, seed: int, compiled: bool) -> None:
    """Train the lab model, show how far it is, and write it.

    Args:
        out: the folder of the finished model.
        work: the folder of checkpoint and latest model, made if there is none.
        tokens: how many tokens of the corpus to read.
        seed: of weights and batches.
        compiled: whether to use torch.compile, which needs a C++ compiler.
    """
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"seed{seed}-{tokens:.0f}.pt"
    steps = max(1, round(tokens / (BATCH * WINDOW)))
    tokenizer = train_tokenizer()
    # On a CPU, eager attention has the faster backward pass in bf16 at this length.
    model = GPTNeoXForCausalLM._from_config(
        model_config(tokenizer), attn_implementation="eager"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer_list = optimizers(model)
    first_step, seconds_before, read = resume(checkpoint, model, optimizer_list)
    run = torch.compile(model) if compiled else model
    stream = batches(tokenizer, seed, first_step)
    losses: list[float] = []
    started = last_saved = time.monotonic()
    for step in range(first_step, steps):
        batch = next(stream)
        read[batch.flatten()] = True
        share = learning_rate_share(step, steps)
        losses.append(take_step(run, batch.to(device), optimizer_list, share))
        if len(losses) == 50 or step + 1 == steps:
            done = (step + 1 - first_step) * BATCH * WINDOW
            print(
                f"step {step + 1}/{steps}  loss {statistics.mean(losses):.3f}  "
                f"{done / (time.monotonic() - started):,.0f} tokens/s",
                flush=True,
            )
            losses.clear()
        if time.monotonic() - last_saved > CHECKPOINT_SECONDS:
            save_checkpoint(
                checkpoint,
                step=step + 1,
                seconds=seconds_before + time.monotonic() - started,
                read=read,
                model=model.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in optimizer_list],
            )
            save_model(model, tokenizer, work / "latest")
            last_saved = time.monotonic()
    part_unread_tokens(model, read)
    save_model(model, tokenizer, out)
    checkpoint.unlink(missing_ok=True)
    minutes = (seconds_before + time.monotonic() - started) / 60
    print(
        f"wrote {out.name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{steps * BATCH * WINDOW:,} tokens in {minutes:.0f} minutes on {device} with "
        f"{torch.get_num_threads()} threads"
    )


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=LAB_MODEL)
    parser.add_argument("--tokens", type=float, default=TOKENS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-report", action="store_true", help="only train")
    options = parser.parse_args()
    work = run_config().build / "lab_model_training"
    train(options.out, work, options.tokens, options.seed, not options.no_compile)
    if not options.no_report:
        # Imported here, for it imports this module.
        from utils.lab_model.evaluate import print_report

        print_report(replace(MODELS["lab"], source=str(options.out.resolve())))


if __name__ == "__main__":
    main()
