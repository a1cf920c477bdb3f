import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import databases

PROJECT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if 'cuda' in item.keywords:
                item.add_marker(pytest.mark.skip(reason='no CUDA device'))


@pytest.fixture
def make_database(tmp_path):
    """make_database('livec', ...) writes a small copy and returns its folder."""
    def make(name, **options):
        root = tmp_path / name
        root.mkdir()
        getattr(databases, name)(root, **options)
        return root
    return make


@pytest.fixture
def script(tmp_path):
    """script('train_test_IQA.py', *options) runs it as a user would, in a folder of its own."""
    def run(name, *options, **environment):
        command = [sys.executable, str(PROJECT / name), *map(str, options)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, **environment})
    return run
