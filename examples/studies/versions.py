"""Run the core tests with every supported Python, the lowest and the newest peft, transformers and torch.

    ./dev test-versions                                # all of them; each needs a few gigabytes for its torch
    ./dev test-versions --python 3.13 --sets newest    # some of them

Needs nothing but Python. Each pair of a Python and a set of releases has an environment of its own, `.venv-versions/`. What
ran is written to docs/results/versions.json, which keeps the pairs that did not run this time, and
`python docs/render/versions.py` puts it into docs/versions.md. A Python that this machine lacks is told and skipped.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "versions.json"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PACKAGES = ("peft", "transformers", "torch")
SETS = ("lowest", "newest")
#: What the core tests need beside the package.
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis")


def lowest() -> list[str]:
    """Return the lowest releases that pyproject.toml allows, as pip takes them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = (re.match(r"([a-z]+)>=([\d.]+)", each) for each in project["dependencies"])
    return [f"{bound[1]}=={bound[2]}.0" for bound in bounds if bound and bound[1] in PACKAGES]


def interpreter(version: str) -> str | None:
    """Return the command of a Python of this machine, such as 3.13; None where there is none."""
    from_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for command in (f"python{version}", *map(str, reversed(from_pyenv))):
        if shutil.which(command) and version == _run(
            [command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        ):
            return command
    return None


def _run(command: list[str]) -> str | None:
    """Return what a command prints; None where it fails."""
    run = subprocess.run(command, capture_output=True, text=True)
    return None if run.returncode else run.stdout.strip()


def environment(command: str, version: str, name: str) -> Path:
    """Make an environment with a set of releases, or bring the one that is there up to date; return its Python."""
    folder = ROOT / ".venv-versions" / f"{version}-{name}"
    subprocess.run([command, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    wanted = lowest() if name == "lowest" else ["--upgrade", *PACKAGES]
    for requirements in (wanted, ["-e", str(ROOT), *wanted, *TEST_TOOLS]):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def core_tests(python: Path, report: Path) -> dict:
    """Run the core tests; return versions, counts, seconds and the names of the tests that failed."""
    start = time.perf_counter()
    options = ("-q", "-p", "no:cacheprovider", "-m", "core", "--tb=short", f"--junitxml={report}")
    subprocess.run([str(python), "-m", "pytest", *options], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    seconds = time.perf_counter() - start
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = "import json, platform; from importlib.metadata import version as v; "
    said = _run(
        [
            str(python),
            "-c",
            f"{names}print(json.dumps({{n: v(n) for n in {PACKAGES}}} | {{'python': platform.python_version()}}))",
        ]
    )
    return {
        "versions": json.loads(said or "{}"),
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": sorted(f"{case.get('classname')}.{case.get('name')}" for case in failed),
        "skipped": len(skipped),
        "seconds": round(seconds),
    }


def test(version: str, name: str) -> dict:
    """Return what the core tests give with a Python and a set of releases, or why they did not run."""
    command = interpreter(version)
    if command is None:
        return {"not_run": "this machine has no such Python"}
    try:
        python = environment(command, version, name)
    except subprocess.CalledProcessError:
        return {"not_run": f"pip finds no {name} releases for it"}
    return core_tests(python, ROOT / "build" / f"versions-{version}-{name}.xml")


def main() -> int:
    """Run what is asked for, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=",".join(PYTHONS), help="Pythons, separated by commas")
    parser.add_argument("--sets", default=",".join(SETS), help="sets of releases: lowest, newest")
    asked = parser.parse_args()
    pairs = [(version, name) for version in asked.python.split(",") for name in asked.sets.split(",")]
    if unknown := [f"{v} {n}" for v, n in pairs if v not in PYTHONS or n not in SETS]:
        parser.error(
            f"Expected Pythons {', '.join(PYTHONS)} and sets {', '.join(SETS)}. Received: {', '.join(unknown)}."
        )
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"runs": {}}
    wrong = False
    (ROOT / "build").mkdir(exist_ok=True)
    for version, name in pairs:
        print(f"Python {version}, {name} releases", flush=True)
        found = test(version, name)
        wrong |= bool(found.get("failed"))
        print(found.get("not_run") or f"{found['passed']} passed, {len(found['failed'])} failed", flush=True)
        results["runs"][f"{version} {name}"] = found
        results["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        results["runs"] = dict(sorted(results["runs"].items()))
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("Next: python docs/render/versions.py")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
