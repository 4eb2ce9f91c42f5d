"""The presets, against the numbers that the publication states."""

from __future__ import annotations

import pytest

from atlasnet.errors import InputError
from atlasnet.training.recipe import Recipe


def test_the_published_learning_rate_falls_by_0_0025_every_10_epochs() -> None:
    recipe = Recipe.preset("publication", epochs=50)
    rates = [recipe.rate(epoch * 7 + 6, 7) for epoch in range(50)]
    assert rates[:10] == [0.01] * 10
    assert rates[10:20] == pytest.approx([0.0075] * 10)
    assert rates[30:40] == pytest.approx([0.0025] * 10)
    assert all(rate > 0 for rate in rates[40:])


def test_the_published_recipe_has_the_published_numbers() -> None:
    recipe = Recipe.preset("publication")
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay, recipe.epochs) == ("sgd", 0.9, 5e-4, 18)
    assert recipe.augmentation.rotation == 10
    assert recipe.augmentation.translation * 512 == 20
    assert recipe.balancing
    assert not recipe.dice


def test_the_published_epoch_is_one_pass() -> None:
    recipe = Recipe.preset("publication")
    assert recipe.steps(slices=6000, batch=4) == 1500


def test_the_default_rate_rises_and_then_falls_to_nothing() -> None:
    recipe = Recipe.preset("default")
    rates = [recipe.rate(step, 25) for step in range(25 * recipe.epochs)]
    top = rates.index(max(rates))
    assert 0 < top < len(rates) / 5
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= recipe.learning_rate
    assert rates[-1] < recipe.learning_rate / 50


def test_the_default_steps_do_not_depend_on_a_small_cohort() -> None:
    recipe = Recipe.preset("default")
    assert recipe.steps(slices=200, batch=4) == recipe.steps(slices=600, batch=32) == recipe.iterations


def test_the_default_shows_each_slice_of_a_large_cohort_several_times() -> None:
    recipe = Recipe.preset("default")
    assert recipe.steps(slices=60_000, batch=4) * 4 * recipe.epochs >= recipe.passes * 60_000


def test_a_recipe_survives_json() -> None:
    recipe = Recipe.preset("default", epochs=3)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="recipe"):
        Recipe.from_json({**Recipe.preset("default").to_json(), "speed": 3})


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epochs_are_refused(epochs: int) -> None:
    with pytest.raises(InputError, match="epoch"):
        Recipe.preset("default", epochs=epochs)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match=r"fast.*default or publication"):
        Recipe.preset("fast")
