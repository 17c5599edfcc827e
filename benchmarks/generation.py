"""How fast is generation, beside transformers and beside what memory allows?

    python benchmarks/generation.py                    batches of 1, 8 and 32, prints ms per token
    python benchmarks/generation.py --batches 1 --prompt 512

A GPT-2 of 124 million random weights is written by transformers and read by both, which must make
the same greedy tokens before anything is timed. The time to the first token is a call for one
token; the time per token is what a call for many takes more, by the number of tokens more. In the
same run a vector is multiplied by a matrix of a gigabyte, larger than any cache: no step that has
to read all weights can be faster than that many bytes per second allow. Everything is in float32,
products on a GPU too.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from eqxformer.bench import ceilings, harness

CANDIDATES = ("eqxformer", "transformers")
SIZES = {"vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}


def main() -> None:
    """Compares the candidates, or, with `--candidate`, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to make")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--candidate", nargs=3, metavar=("WHO", "DIRECTORY", "NEW"))
    options = parser.parse_args()
    if options.candidate:
        who, directory, new = options.candidate
        return serve(who, directory, options.batches[0], options.prompt, int(new))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", WRITE, folder], check=True)
        results: dict[str, Any] = {"sizes": SIZES}
        for batch in options.batches:
            results[str(batch)] = measure(folder, batch, options)
            # Stays, whatever becomes of the others.
            print(f"\nwritten to {harness.write(__file__, 'generation', results)}")


WRITE = f"""
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
config = GPT2Config(**{SIZES}, initializer_range=0.1)
GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
"""


def measure(folder: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """The candidates side by side at one batch size."""
    shared = [__file__, "--batches", str(batch), "--prompt", str(options.prompt)]
    commands = {
        f"{who}, {new}": [*shared, "--candidate", who, folder, str(new)]
        for who in CANDIDATES
        for new in (1, options.new)
    }
    commands |= ceilings.commands(("read",))
    spare = {f"transformers, {new}" for new in (1, options.new)}
    found = harness.compare(commands, repetitions=options.repetitions, check=check, may_fail=spare)
    rate = ceilings.take(found)["read"]["per_second"]
    result: dict[str, Any] = {
        "prompt": options.prompt,
        "new": options.new,
        "bytes_per_second": rate,
    }
    print(
        f"\nbatch {batch}, prompt {options.prompt}, {options.new} new; memory {rate / 1e9:.1f} GB/s"
    )
    there = [who for who in CANDIDATES if all(f"{who}, {n}" in found for n in (1, options.new))]
    for who in there:
        first, whole = (found[f"{who}, {new}"] for new in (1, options.new))
        step = (whole["median"] - first["median"]) / (options.new - 1)
        bound = whole["weight_bytes"] / rate
        result[who] = {
            "first_token_seconds": first["median"],
            "first_token_quartiles": first["quartiles"],
            "step_seconds": step,
            "whole_quartiles": whole["quartiles"],
            "share_of_bandwidth_bound": bound / step,
            "compile_seconds": whole["first_seconds"] - whole["median"],
        }
        print(
            f"  {who:14}{step * 1e3:8.1f} ms a token ({bound / step:.0%} of the bound), "
            f"first token after {first['median'] * 1e3:.0f} ms"
        )
    if len(there) < 2:
        return result
    ours, theirs = (result[who] for who in there)
    result["speedup"] = theirs["step_seconds"] / ours["step_seconds"]
    result["first_token_speedup"] = theirs["first_token_seconds"] / ours["first_token_seconds"]
    print(
        f"  {result['speedup']:.2f}x per token, {result['first_token_speedup']:.2f}x to the first"
    )
    return result


def check(found: dict[str, dict[str, Any]]) -> None:
    """Refuses to compare candidates that write different texts, of one token or of all."""
    written: dict[str, set[str]] = {}
    for name, result in found.items():
        if "texts" in result:
            written.setdefault(name.partition(", ")[2], set()).add(result["texts"])
    for new, texts in written.items():
        if len(texts) > 1:
            raise SystemExit(f"The candidates wrote different texts of {new} tokens.")


def serve(who: str, folder: str, batch: int, prompt: int, new: int) -> None:
    """Is a candidate that makes `new` tokens in every repetition."""
    import numpy as np

    prompts = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (batch, prompt))
    size = pathlib.Path(folder, "model.safetensors").stat().st_size
    generate = {"eqxformer": ours, "transformers": theirs}[who](folder, prompts, new)
    start = time.perf_counter()
    texts = hashlib.sha256(json.dumps(generate()).encode()).hexdigest()
    first = time.perf_counter() - start
    harness.serve(generate, first_seconds=first, texts=texts, weight_bytes=size)


def ours(folder: str, prompts: Any, new: int) -> Any:
    """A function that makes tokens with eqxformer."""
    import jax

    import eqxformer as ef

    if not harness.on_cpu():  # TensorFloat-32, which JAX prefers there, would settle other texts
        jax.config.update("jax_default_matmul_precision", "highest")
    model = ef.from_pretrained(folder)
    return lambda: ef.generate(model, prompts, max_new_tokens=new).tolist()


def theirs(folder: str, prompts: Any, new: int) -> Any:
    """A function that makes tokens with transformers."""
    import torch
    from transformers import GPT2LMHeadModel

    device = harness.torch_device()
    torch.set_float32_matmul_precision("highest")  # as ours
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    ids = torch.tensor(prompts, device=device)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def generate() -> list[list[int]]:
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return made[:, ids.shape[1] :].tolist()

    return generate


if __name__ == "__main__":
    main()
