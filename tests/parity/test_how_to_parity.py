"""The architecture that the how-to adds is the real one."""

from pathlib import Path

import eqxformer as ef
from tests.helpers.parity import errors
from tests.parity.live import SIZES, Case, expected_of, store
from tests.parity.test_round_trip import assert_same_to_transformers
from website.pages import BLOCK

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-architecture.md"


def test_the_example_equals_the_reference_both_ways(tmp_path):
    first = BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert first is not None
    exec(first["code"], {})
    case = Case("ArceeForCausalLM", {**SIZES, "num_key_value_heads": 2, "mlp_bias": True})
    model = case.reference("hot")
    store(model, tmp_path / "theirs")
    wrong = [e for e in errors(tmp_path / "theirs", expected_of(case, model)) if not e.passed]
    assert not wrong, "\n".join(map(str, wrong))
    ef.save_pretrained(ef.from_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    assert_same_to_transformers(case, model, tmp_path / "ours")
