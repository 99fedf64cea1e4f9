"""Every code block of the README and the docs runs, page by page, in a folder of the page's own."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
FILE_NAME = re.compile(r"`([\w.-]+\.toml)`:?\s*$")
KINDS = {"python", "sh", "console", "toml", "text", "json"}
NEEDS_MORE = ("make ", "rankloom data get", "git ", "pip ")
"""Commands that need a network, minutes or a checkout: their target or option names are checked."""


@dataclass
class Block:
    kind: str
    code: str
    before: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        lines = [line.removeprefix(indent) for line in match["code"].splitlines()]
        found.append(Block(match["kind"], "\n".join(lines), text[: match.start()].rstrip()))
    return found


def run_command(line: str, folder: Path) -> None:
    command = line.split(" #")[0].strip()
    if not command or command.startswith("#"):
        return
    if command.startswith("make "):
        target = shlex.split(command)[1]
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"no make target {target}"
        return
    if command.startswith(NEEDS_MORE) or "demo/" in command or "data/" in command:
        check_options(command)
        return
    script = Path(sys.executable).parent / "rankloom"
    assert command.startswith("rankloom "), f"unexpected command {command!r}"
    shell = f"{shlex.quote(str(script))} {command.removeprefix('rankloom ')}"
    result = subprocess.run(shell, shell=True, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def check_options(command: str) -> None:
    """The command and every long option it uses exist."""
    if not command.startswith("rankloom "):
        return
    words = shlex.split(command)[1:]
    names = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    help_words = names if names[0] in ("data", "schema") else names[:1]
    result = subprocess.run(
        [sys.executable, "-m", "rankloom", *help_words, "--help"],
        capture_output=True,
        text=True,
        env={"COLUMNS": "200", "PATH": "", "NO_COLOR": "1", "TERM": "dumb"},
        check=False,
    )
    assert result.returncode == 0, f"no such command: {command}\n{result.stderr}"
    for option in (word for word in words if word.startswith("--")):
        assert option in result.stdout, f"{command}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        assert block.kind in KINDS, f"{page.name}: a block of kind {block.kind} is never run"
        if block.kind == "python":
            run_python(block.code, scope, tmp_path)
        elif block.kind == "sh":
            for line in block.code.replace("\\\n", " ").splitlines():
                run_command(line, tmp_path)
        elif block.kind == "console":
            for line in block.code.splitlines():
                if line.startswith("$ "):
                    run_command(line.removeprefix("$ "), tmp_path)
        elif block.kind == "toml":
            name = FILE_NAME.search(block.before)
            parse_toml(block.code, tmp_path / name[1] if name else None)


def run_python(code: str, scope: dict[str, object], folder: Path) -> None:
    """Run in this process, in the page's folder; names carry over to the next block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "block", "exec"), scope)


def parse_toml(code: str, target: Path | None) -> None:
    """A block is TOML; one that the text before it names as a file is written for what follows."""
    import tomllib

    tomllib.loads(code)
    if target is not None:
        target.write_text(code, encoding="utf-8")


def test_readme_lists_the_catalog() -> None:
    from docs.hooks import model_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.partition("<!-- models -->")[2].partition("<!-- end of models -->")[0]
    assert listed.strip() == model_table("").strip()
