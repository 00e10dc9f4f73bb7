"""What is said of bad input: the error, its words, and memory that ran out."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what a user gave.

    The message is one sentence: the argument, the rule, the value found, and the way out.
    """


CALLED_ELSEWHERE = {
    ("lr", "learning_rate", "lr_img", "lr_net"): "--outer-lr for the set, --inner-lr for networks",
    ("epochs", "iterations", "iters", "iteration", "num_iter", "max_steps"): "--steps",
    ("arch", "architecture", "net", "network", "backbone"): "--model",
    ("batch_size", "batch", "batch_real", "bs"): "--real-batch for real images, --batch-per-class "
    "for the set",
    ("images_per_class", "n_ipc", "spc", "budget", "num_images"): "--ipc",
    ("dataset", "data_path", "data_dir", "data_root", "path"): "--data",
    ("output", "output_dir", "out_dir", "save_path", "save_dir", "logdir"): "--out",
    ("gpu", "gpus", "cuda"): "--device cuda",
    ("workers", "num_workers", "cpus", "num_threads"): "--threads",
    ("zca", "whiten", "whitening"): "--preprocess zca",
    ("dsa", "dsa_strategy", "augmentation", "augmentations"): "--augment",
    ("momentum", "mom_img"): "--outer-momentum, with --outer-optimizer sgd",
    ("fp16", "bf16", "amp", "dtype"): "--precision bfloat16",
    ("init_from", "pix_init"): "--init",
    ("inner_steps", "inner_loop", "unroll_steps", "syn_steps"): "--unroll",
    ("num_eval", "repeats", "runs"): "--nets of `potstill evaluate`",
    ("haba",): "factorised",
    ("linba", "memory", "addressing"): "basis",
    ("idc", "multi"): "multi-formation",
    ("fixed_window", "tbptt"): "t-bptt",
    ("boost_dd", "boostdd"): "rat-bptt with --boost-blocks",
    ("resnet",): "resnet18",
    ("vgg",): "vgg11",
    ("standardize", "standardise", "standard"): "normalize",
}
"""What other tools and papers call it -> what it is called here."""
LONGEST = 300
"""Characters of an error of somebody else's that are passed on."""
MEMORY_RAN_OUT = re.compile(
    "out of memory|not enough memory|can(no|')t allocate(?! memory in static TLS)|bad_alloc"
    "|could not create a primitive(?! descriptor)",  # oneDNN's word for it
    re.IGNORECASE,
)
LONGEST_SHOWN = 1500
"""Characters of a sentence."""
CUTOFF = 0.65
"""Least likeness of a name that is suggested, of 1: a bad guess is worse than none."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return a hint on a name that is not known, or "".

    It is " (here it is x)" for what other tools call it, else " (did you mean 'x'?)".
    """
    word, names = plain(name), {plain(one): one for one in known}
    for others, here in CALLED_ELSEWHERE.items():
        own = plain(here.partition(" ")[0].strip("`,"))
        if word in others and own in names:
            return f" (here it is {here})"
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=CUTOFF)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def plain(name: str) -> str:
    """Return a name as names are compared: without dashes, in small letters."""
    return name.lstrip("-").replace("-", "_").lower()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, not too long; its type if it has none."""
    line = next(filter(str.strip, str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."


def visible(text: str) -> str:
    """Return a text for a terminal: control characters, which it would obey, as escapes; not too
    long.
    """
    if len(text) > LONGEST_SHOWN:
        text = f"{text[: LONGEST_SHOWN // 2]} ... {text[-LONGEST_SHOWN // 3 :]}"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    return isinstance(error, MemoryError) or bool(MEMORY_RAN_OUT.search(str(error)))


def let_memory_pass(error: BaseException) -> None:
    """Raise an error again if memory ran out: whoever's code it was, it is not to blame."""
    if out_of_memory(error):
        raise error
