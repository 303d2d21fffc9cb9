"""What a checkpoint knows, in a sentence from its own modalities."""

from fakes import LABELS, make_specs

from app.knowledge import knowledge


def specs(labels=LABELS, classes=("background", "fruit"), names=("image", "mask", "label", "embedding")):
    return {name: spec for name, spec in make_specs(64, labels, classes).items() if name in names}


def test_it_names_some_of_the_labels_from_all_parts_of_the_list_and_the_size():
    said = knowledge(specs())
    assert (
        "Knows <b>7 labels</b>, such as Apple Braeburn, Apple Golden, Cherry Rainier and Tomato Heart."
        in said
    )
    assert "Its masks tell fruit from background. Its images have 64 × 64 pixels." in said


def test_all_classes_can_be_seen_where_there_are_more():
    said = knowledge(specs())
    assert all(f"<li>{label}</li>" in said for label in LABELS) and "See all" in said
    assert "<h2>Label · its name</h2>" in said and "<li>fruit</li>" not in said
    few = knowledge(specs(labels=("cat", "dog")))
    assert "Knows <b>2 labels</b>: cat and dog." in few and "See all" not in few
    many = knowledge(specs(classes=("void", "sky", "road", "car", "tree")))
    assert "Its masks tell sky, road, car and tree from void." in many and "<li>tree</li>" in many


def test_a_model_without_classes_says_its_size_only():
    assert knowledge(specs(names=("image", "embedding"))) == (
        '<div class="knows"><p>Its images have 64 × 64 pixels.</p></div>'
    )


def test_names_are_escaped():
    said = knowledge(specs(labels=tuple(f"<b>{k}</b>" for k in range(6)), classes=("a", "<i>")))
    assert "<b>1" not in said and "<i>" not in said
