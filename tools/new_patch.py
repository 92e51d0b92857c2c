"""Make the two folders of a new entry of the register, from nothing.

    python tools/new_patch.py 12345-what-is-wrong

``patches/<id>/`` gets a ``patch.toml`` with every key, to be filled in: until then the register
says which is missing. ``tests/patches/<id>/`` gets a test that fails until it is written, and the
other files that every entry has there.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent

# Lower case, so that it is the same folder everywhere; more than a number, so as not to be a PR.
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")

_PATCH = """\
# CONTRIBUTING.md, "Write a patch", says more of each key. "#" without a blank behind it marks one
# that is to be filled in. A text may have several lines, between three quotation marks.

# The name of this folder.
id = "{id}"
# The upstream pull request. Left out if there is none.
{pr}
# correctness or stability: on with SGLANG_COMMFIX=1. performance or feature: on when named.
#kind = "correctness"
# Whether it changes which collectives a rank enters, over what group, or how large they are.
#collective = true
# The releases with the fault, half-open.
#affected = ">=0.5.11,<0.5.12"
# The first release with the fix. Left out if no release has it.
#fixed_in = "0.5.12"
# Optional: the upstream pull requests whose published version has the fault.
#fixes = []
# The upstream pull request, and reports of the fault.
#links = ["https://github.com/sgl-project/sglang/pull/{number}"]
# Optional: edits are made in this order, then by id.
#order = 0
# Optional: the ids that this patch is wrong without.
#requires = []
# Optional: the ids that it cannot be combined with.
#conflicts = []
# One line: the fault, not the repair.
#title = "..."
# One line for the README's tables: what an operator sees. Of correctness or stability, it has the
# word "wrong", "hang", "dies" or "slow", by which the tables are sorted.
#seen = "..."
# One line beside it: the launch flags, models and hardware of those who see it.
#flags = "..."
# What an operator sees: the words of the error, measured figures.
#symptom = "..."
# Who does what, and why that is wrong.
#cause = "..."
# Models, flags, hardware.
#hits = "..."
# What is different afterwards, and what differs from upstream's version.
#change = "..."
# On what it was shown, one or more: cpu ranks, cpu server, H100, H200.
#shown = ["cpu ranks"]

# One or more: when a launch meets the fault. All keys are optional. All that a table says has to
# hold, and one of several tables. What may be named stands in patches/launches.toml, where a name
# can be added.
#[[meets]]
# The releases that this table is about.
#releases = ">=0.5.11,<0.5.12"
# Architectures as in a model's config.json, or families of them.
#architectures = ["DeepseekV3ForCausalLM"]
# In place of it: those that are right.
#other_than = ["GptOssForCausalLM"]
# Comparisons of values in the model's config.
#config = ["first_k_dense_replace > 0"]
# Comparisons of flags, by their names in sglang's ServerArgs, and facts.
#flags = ["dp_attention", "dp_size == ep_size > 1", 'moe_a2a_backend == "none"']
# The machines.
#machines = ["Hopper", "Blackwell"]
# What no launch can tell. It may then meet the fault, at best.
#also = "GPU memory is short behind the KV cache"

# Optional, any number: what keeps a launch from meeting it, without this package.
#[[avoid]]
# The flags to add, by their names in ServerArgs. In place of it, `what` says it in words.
#flags = {{ ep_size = 1 }}
# Optional: the releases in which it does.
#releases = ">=0.5.11,<0.5.12"
# Optional: what is lost by it.
#cost = "..."

# Optional, any number: what is not edited, and has to be there for the fault to be there.
#[[faulty]]
# The module.
#module = "sglang.srt.layers.communicator"
# The class or function in it, by its qualified name.
#scope = "LayerCommunicator.postprocess_layer"
# Optional: whole neighbouring statements, once in the scope. Without it the scope has to exist.
#find = "return hidden_states, residual"
# Optional: the affected releases that show the fault by it.
#releases = ">=0.5.11,<0.5.12"
# What it shows.
#why = "the consumer reduces"

# One or more: what shows, each by itself, that the fault is not there: each form of the fix, and of
# the code before the fault. Keys as above; the releases are those in which it stands. In every
# release that is not affected one of them has to stand, and in an affected one none.
#[[sound]]
# The module.
#module = "sglang.srt.layers.communicator"
# In place of find: names, none of which the scope mentions; without a scope, the module. A scope
# has to be there; of a module that is not there, it is so.
#unmentioned = ["should_use_reduce_scatter"]
# Optional: the entry that puts it there, where no release has it: it counts as exported to disk.
#after = "{id}"
# What it shows.
#why = "there is no consumer"

# One or more: what is changed.
#[[edit]]
# The module.
#module = "sglang.srt.layers.communicator"
# The class or function in it, by its qualified name.
#scope = "LayerCommunicator.should_use_reduce_scatter"
# The anchor: whole neighbouring statements, once in the scope.
#find = "return False"
# The new statements. In place of `replace` also `before` or `after`, which leave the anchor there.
#replace = "return True"
# Optional: the affected releases that take this variant.
#releases = ">=0.5.11,<0.5.12"
# Optional: names that the new text takes as they come, however they are defined, each with why.
#given = {{ batch_size = "any number will do" }}

# Where functions are added: a file of this folder goes behind the module's last line.
#[[edit]]
# The module.
#module = "sglang.srt.layers.communicator"
# The file.
#append = "added.py"

# Optional, any number: another entry's fault, which such a launch may meet where this one is fixed.
#[[beside]]
# The entry.
#id = "{id}"
# Which of the launches, as the end of a sentence.
#when = "with pipeline stages"

# Optional, any number: decisions that are not upstream's, on purpose.
#[[difference]]
# The suite of decisions.
#decision = "reduce_scatter"
# The cases, as an expression over their axes.
#when = "tp == 4 and padding == 'SUM_LEN'"
# Why they are not decided as upstream does.
#why = "..."
# Optional: the affected releases in which they are not.
#releases = ">=0.5.11,<0.5.12"
"""

_TEST = '''\
"""``{id}``: the fault, and that it is gone.

What proves which fault, and in which file: CONTRIBUTING.md, "Which proof an entry needs".
"""

from __future__ import annotations

import pytest


PATCH = "{id}"


def test_it_fails_without_the_patch_and_passes_with_it() -> None:
    pytest.fail(f"{{PATCH}} is not proved yet: write what is wrong without it, and right with it")
'''

_EVIDENCE = """\
**Evidence.** What was measured, on what.

**Difference from upstream.** None.
"""

_HISTORY = """\
# The commits of sglang that brought the fault, each with what it did and its pull request.
brought = []
# Those that mended it; none as long as upstream has not.
mended = []
"""


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Make the folders, or say in one line why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("id", help="<PR>-<slug>, or a slug if there is no upstream pull request")
    entry: str = parser.parse_args(arguments).id
    files = texts(entry, root)
    if refusal := why_not(entry, files, root):
        print(refusal, file=sys.stderr)
        return 1
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"written: {file.relative_to(root)}")
    print("Fill them in, then run tools/generate.py; CONTRIBUTING.md has the rest")
    return 0


def texts(entry: str, root: Path) -> dict[Path, str]:
    """Return the files of a new entry."""
    number = entry.partition("-")[0]
    pr = f"pr = {number}" if number.isdecimal() else "#pr = 12345"
    number = number if number.isdecimal() else "12345"
    return {
        root / "patches" / entry / "patch.toml": _PATCH.format(id=entry, pr=pr, number=number),
        root / "tests" / "patches" / entry / "test_source.py": _TEST.format(id=entry),
        root / "tests" / "patches" / entry / "evidence.md": _EVIDENCE,
        root / "tests" / "patches" / entry / "history.toml": _HISTORY,
    }


def why_not(entry: str, files: dict[Path, str], root: Path) -> str | None:
    """Say what is wrong with the id."""
    if not _ID.fullmatch(entry):
        return (
            f"{entry!r} is no id: it is made of lower-case words and numbers with hyphens between"
            " them, the number of the upstream pull request first, as in 12345-what-is-wrong"
        )
    for folder in (file.parent for file in files):
        if folder.exists():
            return f"{folder.relative_to(root)} exists already"
    return None


if __name__ == "__main__":
    sys.exit(main())
