"""The documentation builds without a warning and without a network, and holds every public name and setting."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import milcore

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = sorted(set(dir(milcore)) - {"__version__"})
FETCHED = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']*""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--fresh-env", "--quiet", "--doctree-dir", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return folder / "html"


def pages(site: Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}


def test_no_page_and_no_style_fetches_from_a_network(site: Path) -> None:
    fetched = {name: FETCHED.findall(text) for name, text in pages(site).items()}
    assert {name: found for name, found in fetched.items() if found} == {}
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


def test_a_script_from_a_network_is_noticed() -> None:
    assert FETCHED.findall('<script async="async" src="https://cdn.example/mathjax.js"></script>')
    assert not FETCHED.findall('<script src="_static/doctools.js"></script><a href="https://example.org">')


def test_no_formula_is_left_as_tex(site: Path) -> None:
    page = pages(site)["pooling.html"]
    assert page.count("<math") > 100
    assert "\\sum" not in page


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_stands_on_the_pages_of_the_api(site: Path, name: str) -> None:
    assert any(f'id="milcore.{name}"' in text for page, text in pages(site).items() if page.startswith("api/"))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.endswith("Config")])
def test_every_setting_stands_there_with_its_default_and_description(site: Path, name: str) -> None:
    config: type[BaseModel] = getattr(milcore, name)
    text = pages(site)["api/configs.html"]
    for field in config.model_fields:
        assert f'id="milcore.{name}.{field}"' in text, field
