"""The generated modules are what proto/generate.py makes of the .proto files today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "proto" / "generate.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("millpond_proto_generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(generator: ModuleType) -> dict[str, str]:
    files: dict[str, str] = generator.generate()
    return files


def test_the_committed_modules_are_those_that_the_protos_make(generator: ModuleType, generated: dict[str, str]) -> None:
    assert generator.differences(generated) == [], "run: python proto/generate.py"


def test_generating_twice_gives_the_same_bytes(generator: ModuleType, generated: dict[str, str]) -> None:
    assert generator.generate() == generated


def test_no_generated_import_leaves_the_package(generated: dict[str, str]) -> None:
    imports = [line for text in generated.values() for line in text.splitlines() if " import " in line]
    foreign = [line for line in imports if line.startswith(("from build", "from google.rpc", "from google.bytestream"))]
    assert foreign == []
    assert any(line.startswith("from millpond._protos.google.rpc import status_pb2") for line in imports)


def test_the_check_names_each_file_that_differs(generator: ModuleType, tmp_path: Path) -> None:
    expected = {"__init__.py": "", "fresh_pb2.py": "new", "gone_pb2.pyi": "new"}
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "fresh_pb2.py").write_text("old")
    (tmp_path / "old_pb2.py").write_text("")
    assert [sentence.split(":")[0] for sentence in generator.differences(expected, tmp_path)] == [
        "gone_pb2.pyi is missing.",
        "old_pb2.py is extra",
        "fresh_pb2.py is stale",
    ]
    generator.write(expected, tmp_path)
    assert generator.differences(expected, tmp_path) == []
