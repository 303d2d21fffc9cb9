"""Variants at equal time: options are read as in TOML, all get the same time, the better is better."""

import pytest
from synthetic import read_shapes, tiny_train_config

from benchmarks.equal_time import changed, described, race


def test_variants_change_options_as_toml_does():
    config = tiny_train_config()
    name, other = changed(config, "wide one: model.width=64 optim.lr=2e-3")
    assert name == "wide one"
    assert (other.model.width, other.optim.lr) == (64, 2e-3)
    assert changed(config, "as it is") == ("as it is", config)


@pytest.mark.parametrize("change", ["optim.speed=2", "width=64", "data.views=2", "model"])
def test_what_is_no_option_is_refused(change):
    with pytest.raises(ValueError, match="sets no option"):
        changed(tiny_train_config(), f"odd: {change}")


def test_all_train_for_the_same_time(shapes, embedder):
    config = tiny_train_config(images=10**6)
    examples = read_shapes(shapes, config, embedder)
    configs = dict([("still", changed(config, "still: optim.lr=1e-9")[1]), ("as it is", config)])
    still, moving = race(configs, {config.model.patch_size: examples}, examples, seconds=2.0, compiled=False)
    assert 2 <= still.seconds < 10 and 2 <= moving.seconds < 10  # a last step may be slow
    assert moving.points[-1]["total"] < still.points[-1]["total"]
    told = described(still, "still: optim.lr=1e-9")
    assert told["changes"] == "optim.lr=1e-9" and told["images_per_second"] > 0
