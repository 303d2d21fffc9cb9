"""Encodings, heads and likelihoods of every modality, and errors for invalid input."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import integrate
from scipy.linalg import hadamard
from synthetic import CLASSES, DIM, SIZE, WordEmbedder, draw_shape, mask_of
from torch.nn import functional as F

from mmdiff.config import ModalityConfig
from mmdiff.images import square, to_uint8
from mmdiff.modalities import KINDS, build_modality
from mmdiff.modalities.base import class_codes, palette
from mmdiff.modalities.embedding import vmf_log_normaliser

GRID = SIZE // 4
MASK_CLASSES = ["void", "road", "sky"]
OPTIONS = {
    "image": {},
    "mask": {"classes": MASK_CLASSES},
    "label": {"classes": list(CLASSES)},
    "embedding": {"dim": DIM},
}


def build(kind: str, **options):
    return build_modality(ModalityConfig(kind, kind, options=OPTIONS[kind] | options), SIZE, 4)


@pytest.fixture(params=sorted(set(KINDS) - {"latent_image"}))  # which test_latent_image.py is about
def modality(request):
    return build(request.param)


def draw(modality, count: int = 5, seed: int = 0) -> torch.Tensor:
    """Random data-space values (count, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    if modality.classes:
        return torch.randint(len(modality.classes), (count, *modality.shape), generator=generator)
    values = torch.randn(count, *modality.shape, generator=generator)
    return values.clamp(-1, 1) if modality.dense else F.normalize(values, dim=1)


def draw_raw(modality, count: int = 5, seed: int = 1) -> torch.Tensor:
    """Random outputs of its head."""
    extent = (SIZE, SIZE) if modality.dense else ()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, modality.head_channels, *extent, generator=generator)


# -- the contract of a modality ----------------------------------------------------------------------


def test_shapes_and_ranges(modality):
    x, raw = draw(modality), draw_raw(modality)
    z_shape = (5, modality.z_channels, GRID, GRID)
    assert x.shape[1:] == modality.shape
    assert modality.encode(x).shape == z_shape
    assert modality.expected_encoding(raw).shape == z_shape
    prediction = modality.predict(raw)
    assert modality.as_prediction(x).shape == prediction.shape
    for value in (prediction, modality.as_prediction(x)):
        if modality.classes:
            torch.testing.assert_close(value.sum(1), torch.ones_like(value.sum(1)))
        elif modality.dense:
            assert value.abs().max() <= 1
        else:
            torch.testing.assert_close(value.norm(dim=1), torch.ones(5))
    assert modality.loss(raw, x).shape == modality.nll(raw, x).shape == (5,)


def test_encodings_are_of_unit_size(modality):
    z = modality.encode(draw(modality, 200))
    if modality.kind == "image":
        assert z.abs().max() <= 1
    elif modality.kind == "mask":  # void is zero, every other pixel has unit RMS
        x = draw(modality, 200)
        pixels = F.pixel_shuffle(z, 4).square().mean(1)
        torch.testing.assert_close(pixels, (x != 0).float())
    else:
        torch.testing.assert_close(z.square().mean((1, 2, 3)), torch.ones(200))


def test_encodings_tell_every_value_apart(modality):
    z = modality.encode(draw(modality, 60)).flatten(1)
    x = modality.as_prediction(draw(modality, 60)).flatten(1)
    equal = [(v[:, None] == v[None]).all(2) for v in (z, x)]
    assert torch.equal(*equal) and not equal[0].all()


def test_decoding_undoes_encoding(modality):
    x = draw(modality)
    decoded = modality.decode(modality.encode(x))
    if not modality.dense:
        assert decoded is None
    elif modality.classes:  # void has no code, so anything may be read where it was
        assert torch.equal(decoded[x > 0], x[x > 0]) and decoded.min() == 1
    else:
        torch.testing.assert_close(decoded, x)


def test_a_noisy_coarse_mask_is_read_cell_by_cell():
    mask = build("mask", stride=4, classes=["ground", "leaf", "fruit"])
    x = torch.arange(16).remainder(3).view(1, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    z = mask.encode(x)
    assert torch.equal(mask.decode(z + 0.3 * torch.randn(z.shape, generator=torch.manual_seed(0))), x)
    lost = mask.decode(torch.randn(200, *z.shape[1:], generator=torch.manual_seed(0)))
    assert (lost.flatten().bincount() / lost.numel()).sub(1 / 3).abs().max() < 0.03


def test_a_certain_prediction_has_the_encoding_of_its_value(modality):
    x = draw(modality)
    x = x.clamp(min=1) if modality.kind == "mask" else x  # void is never predicted
    certain = modality.as_prediction(x) * (1e4 if modality.classes else 1)
    torch.testing.assert_close(modality.expected_encoding(certain), modality.encode(x))


def test_the_expected_encoding_is_the_mean_of_the_encodings():
    label = build("label")
    raw = draw_raw(label)
    codes = label.encode(torch.arange(len(CLASSES)))
    mean = (raw.softmax(1)[:, :, None, None, None] * codes).sum(1)
    torch.testing.assert_close(label.expected_encoding(raw), mean)


@pytest.mark.parametrize("kind", ["label", "embedding"])
def test_a_global_encoding_is_the_same_on_every_token(kind):
    z = build(kind).encode(draw(build(kind)))
    assert (z == z[:, :, :1, :1]).all()


def test_an_embedding_keeps_its_angles():
    embedding = build("embedding")
    x = draw(embedding, 20)
    z = embedding.encode(x)[:, :, 0, 0]
    torch.testing.assert_close(z @ z.T / DIM, x @ x.T)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 9, 49, 100])
def test_class_codes_are_the_corners_of_a_simplex(count):
    codes = class_codes(count)
    assert len(codes) == count
    assert (codes.abs() == 1).all()  # so unit RMS, and exact in half precision
    distances = torch.pdist(codes)
    assert (distances == distances[0]).all() and distances[0] > 0
    size = 1 << max(1, (count - 1).bit_length())  # scipy's is Sylvester's matrix, too
    assert np.array_equal(codes, hadamard(size)[:count, 1:])


def test_palette_colours_differ():
    for count in (2, 7, 20):
        colours = {tuple(c) for c in palette(count)}
        assert len(colours) == count and palette(count).dtype == np.uint8


# -- likelihoods -------------------------------------------------------------------------------------


def test_image_likelihood_is_a_gaussian():
    image = build("image", sigma=0.3)
    x, raw = draw(image), draw_raw(image)
    expected = -torch.distributions.Normal(raw, 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(image.nll(raw, x), expected)
    torch.testing.assert_close(image.loss(raw, x), (raw - x).square().flatten(1).mean(1))


def test_label_likelihood_is_categorical():
    label = build("label")
    x, raw = draw(label), draw_raw(label)
    expected = -torch.distributions.Categorical(logits=raw).log_prob(x)
    torch.testing.assert_close(label.nll(raw, x), expected)
    torch.testing.assert_close(label.loss(raw, x), expected)


def test_mask_likelihood_is_categorical_over_real_classes():
    mask = build("mask")
    x, raw = draw(mask), draw_raw(mask)
    pixels = -torch.distributions.Categorical(logits=raw[:, 1:].movedim(1, -1)).log_prob((x - 1).clamp(min=0))
    counted = x > 0
    expected = (pixels * counted).sum((1, 2))
    torch.testing.assert_close(mask.nll(raw, x), expected)
    torch.testing.assert_close(mask.loss(raw, x), expected / counted.sum((1, 2)))


def test_void_pixels_have_no_loss_and_are_never_predicted():
    mask = build("mask")
    x, raw = draw(mask), draw_raw(mask)
    raw[:, 0] += 50  # a head that would love to predict void
    assert (mask.predict(raw).argmax(1) != 0).all() and (mask.predict(raw)[:, 0] == 0).all()
    raw.requires_grad_(True)
    mask.loss(raw, x).sum().backward()
    void = (x == 0)[:, None].expand_as(raw)
    assert void.any() and (raw.grad[void] == 0).all() and (raw.grad[:, 1:][~void[:, 1:]] != 0).all()
    assert (mask.loss(raw, torch.zeros_like(x)) == 0).all()  # not NaN either


@pytest.mark.parametrize("kappa", [0.5, 5.0, 50.0])
def test_von_mises_fisher_integrates_to_one(kappa):
    """Numerically, over the angle to the mean direction; the points at one angle form a sphere one below."""
    for dim in (2, 3, 4, 8):
        log_c = vmf_log_normaliser(dim, kappa)
        below = 2 * math.pi ** ((dim - 1) / 2) / math.gamma((dim - 1) / 2)  # its area at radius 1

        def density(angle, log_c=log_c, dim=dim, below=below):
            return math.exp(log_c + kappa * math.cos(angle)) * below * math.sin(angle) ** (dim - 2)

        assert integrate.quad(density, 0, math.pi)[0] == pytest.approx(1, abs=1e-8)


def test_embedding_likelihood_is_von_mises_fisher():
    embedding = build("embedding", kappa=7.0)
    x, raw = draw(embedding), draw_raw(embedding)
    cosine = F.cosine_similarity(raw, x)
    torch.testing.assert_close(embedding.nll(raw, x), -vmf_log_normaliser(DIM, 7.0) - 7 * cosine)
    assert math.isfinite(vmf_log_normaliser(1024, 50.0))  # where the Bessel function itself underflows


# -- user input --------------------------------------------------------------------------------------


def rgb(width: int = 20, height: int = 12) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_photos_of_the_right_size_keep_every_level():
    photo = rgb(SIZE, SIZE)
    assert np.array_equal(to_uint8(build("image").parse(photo)), np.asarray(photo))


def test_photos_come_as_picture_array_or_path(tmp_path):
    image, photo = build("image"), rgb()
    photo.save(tmp_path / "photo.png")
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    forms = [photo, np.asarray(photo), tmp_path / "photo.png", str(tmp_path / "photo.png"), buffer]
    values = [image.parse(form) for form in forms]
    assert all(torch.equal(value, values[0]) for value in values)
    assert values[0].shape == image.shape and values[0].abs().max() <= 1


def test_photos_are_cut_to_the_centre_upright_and_opaque():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (np.asarray(square(Image.fromarray(wide), 10)) == 255).all()
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (np.asarray(square(clear, 4)) == 255).all()
    turned = Image.fromarray(draw_shape(0, 0)[:, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(square(Image.open(buffer), SIZE)), draw_shape(0, 0))
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    assert (np.asarray(square(grey, 4)) == 77).all()


def test_photos_of_16_bits_become_8_and_floating_ones_are_refused(tmp_path):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    value = build("image").parse(tmp_path / "deep.png")
    expected = build("image").parse(Image.fromarray(levels))
    assert torch.equal(value, expected) and value.max() < -0.8
    with pytest.raises(ValueError, match="floating-point numbers; give whole ones"):
        build("image").parse(Image.fromarray(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize("kind", ["image", "latent_image"])
def test_completed_photos_have_no_seam(kind):
    """What a prediction misses around a hole it misses in it, too: a wrong brightness is mended exactly."""
    photos = build_modality(ModalityConfig("image", kind), SIZE, 8)
    smooth = F.interpolate(
        torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), SIZE, mode="bicubic"
    )
    x, made = (0.5 * smooth.tanh()).split(2)
    known = torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool)
    known[..., SIZE // 2 :] = False
    torch.testing.assert_close(photos.completed(x, x + 0.2, known), x)
    filled = photos.completed(x, made, known)
    assert torch.equal(filled[known.expand_as(x)], x[known.expand_as(x)])
    missed = (x - made)[..., SIZE // 2 - 1]  # at the edge of the hole
    step = (filled - made)[..., SIZE // 2] - missed
    assert step.abs().mean() < 0.5 * missed.abs().mean()  # the correction goes on over the edge
    assert torch.equal(photos.completed(torch.where(known, x, -x), made, known), filled)
    assert photos.completed(x, 9 * torch.ones_like(x), known).abs().max() <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_completed_with_all_or_no_pixels_known(share):
    x, made = draw(build("image")), draw(build("image"), seed=1)
    known = torch.full((5, 1, SIZE, SIZE), bool(share))
    assert torch.equal(build("image").completed(x, made, known), x if share else made)


def test_masks_come_as_picture_array_or_path(tmp_path):
    mask = build("mask")
    indices = np.random.default_rng(0).integers(0, 3, (SIZE, SIZE))
    picture = Image.fromarray(indices.astype(np.uint8))
    palettized = picture.copy()
    palettized.putpalette([0, 0, 0, 9, 9, 9, 30, 30, 30])
    palettized.save(tmp_path / "mask.png")
    for form in (indices, picture, palettized, tmp_path / "mask.png", torch.from_numpy(indices)):
        value = mask.parse(form)
        assert value.dtype == torch.long and np.array_equal(value, indices)
    doubled = indices.repeat(2, 0).repeat(2, 1)
    assert np.array_equal(mask.parse(doubled), indices)  # classes are never blended
    boolean = mask.parse(indices > 1)
    assert np.array_equal(boolean, indices > 1)


def test_masks_of_more_classes_than_a_byte_holds_are_refused():
    assert build("mask", classes=[str(k) for k in range(256)]).head_channels == 256
    with pytest.raises(ValueError, match="257 classes do not fit into a byte"):
        build("mask", classes=[str(k) for k in range(257)])


def test_labels_come_as_name_or_number():
    label = build("label")
    for form in (2, np.int64(2), torch.tensor(2), "blue disc", " Blue DISC "):
        assert label.parse(form) == 2


def test_embeddings_come_as_text_photo_or_vector():
    embedding, embedder = build("embedding"), WordEmbedder()
    embedding.attach(embedder)
    assert torch.equal(embedding.parse("a red disc"), embedder.embed_texts(["a red disc"])[0])
    photo = rgb(SIZE, SIZE)
    pixels = build("image").parse(photo)
    assert torch.equal(embedding.parse(photo), embedder.embed_images(pixels[None])[0])
    for vector in (np.arange(1, DIM + 1), list(range(1, DIM + 1)), torch.arange(1, DIM + 1)):
        parsed = embedding.parse(vector)
        torch.testing.assert_close(parsed, F.normalize(torch.arange(1.0, DIM + 1), dim=0))


TEXT_FILE = io.BytesIO(b"no picture at all")
WRONG = {
    "image": [
        (None, "no photo was given; give a picture"),
        ("", "no file at ''"),
        ("nowhere.png", "no file at 'nowhere.png'; give the path of an existing photo"),
        (TEXT_FILE, "could not be read as a photo; give a PNG, JPEG or WebP"),
        (__file__, r"test_modalities.py' could not be read as a photo"),
        (5, "could not be read as a photo"),
        (np.zeros((4, 4, 3)), r"array of shape \(4, 4, 3\) and type float64; give \(H, W, 3\)"),
        (np.zeros((3, 16, 16), np.uint8), r"shape \(3, 16, 16\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 0, 3), np.uint8), r"shape \(0, 0, 3\)"),
        (Image.new("RGB", (0, 5)), r"no pixels \(0 x 5\)"),
    ],
    "mask": [
        (None, "no mask was given"),
        ("nowhere.png", "no file at 'nowhere.png'; give the path of an existing mask"),
        (np.ones((8, 6), np.int64), "6 x 8 pixels; give a square one, best 16 x 16"),
        (np.zeros((8, 8, 1), np.int64), r"class numbers \(H, W\), but got shape \(8, 8, 1\)"),
        (np.zeros((8, 8)), r"whole numbers, but got an array .* float64"),
        (np.full((8, 8), 3), "class number 3, but the classes are 0 = void, 1 = road, 2 = sky; renumber"),
        (np.full((8, 8), -1), "class number -1"),
        (np.full((8, 8), 255, np.uint8), "void everywhere"),
        (np.full((8, 8), 250, np.uint8), "class number 250"),
        (np.zeros((8, 8), np.int64), "void everywhere and says nothing; leave it out"),
        (np.zeros((0, 0), np.int64), r"shape \(0, 0\)"),
        (Image.new("RGB", (8, 8), "red"), "colours that stand for no class; use the palette"),
        (Image.new("L", (0, 0)), "no pixels"),
    ],
    "label": [
        (None, "a class name or number, but got None"),
        ("", "no class is called ''"),
        ("green disc", "no class is called 'green disc'; the classes are red disc, red square"),
        (4, "class 4 does not exist; the 4 classes are numbered 0 to 3"),
        (-1, "class -1 does not exist"),
        (1.5, "a class name or number, but got 1.5"),
        (float("inf"), "but got inf"),
        ([1], r"but got \[1\]"),
    ],
    "embedding": [
        (None, "expected 8 finite numbers"),
        ("", "the text is empty; describe the picture"),
        ("  \n", "the text is empty"),
        (np.zeros(DIM), "not all zero"),
        (np.ones(DIM + 1), r"expected 8 finite numbers, .* got shape \(9,\); make one with embed_text"),
        (np.full(DIM, np.nan), "finite numbers"),
        (np.full(DIM, 1e30), "finite numbers"),
        ({"a": 1}, "a text, a photo or a vector, but got dict"),
        ("photo.JPG", "looks like the path of a picture; give a pathlib.Path"),
    ],
}


@pytest.mark.parametrize(
    "kind, value, message",
    [(kind, value, message) for kind, cases in WRONG.items() for value, message in cases],
)
def test_invalid_input(kind, value, message):
    modality = build(kind)
    modality.attach(WordEmbedder())
    with pytest.raises(ValueError, match=message):
        modality.parse(value)


def test_a_damaged_photo(tmp_path):
    rgb(64, 64).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    for form in (tmp_path / "half.png", Image.open(tmp_path / "half.png")):
        with pytest.raises(ValueError, match="could not be read as a photo"):
            build("image").parse(form)


def test_texts_without_an_embedder():
    embedding = build("embedding")
    for form in ("a red disc", rgb()):
        with pytest.raises(ValueError, match="comes without an embedder, so it takes a vector of 8 numbers"):
            embedding.parse(form)


def test_an_embedder_of_another_size():
    with pytest.raises(ValueError, match="makes 8 numbers, but the model was trained on 5"):
        build("embedding", dim=5).attach(WordEmbedder())


# -- data sets ---------------------------------------------------------------------------------------


def test_stored_values_come_back():
    photo = draw_shape(1, 3)
    cells = {
        "image": (Image.fromarray(photo), torch.from_numpy(photo).permute(2, 0, 1) / 127.5 - 1),
        "mask": (Image.fromarray(mask_of(photo).astype(np.uint8)), torch.from_numpy(mask_of(photo)).long()),
        "label": (3, torch.tensor(3)),
        "embedding": ([1.0] + [0.0] * (DIM - 1), F.one_hot(torch.tensor(0), DIM).float()),
    }
    for kind, (cell, expected) in cells.items():
        modality = build(kind)
        stored = torch.from_numpy(np.array(modality.store(cell, SIZE)))
        assert torch.equal(modality.from_stored(stored[None])[0], expected), kind
        assert modality.store(None, SIZE) is None
    assert build("label").store(-1, SIZE) is None
    assert build("label").store("red square", SIZE) == 1


@pytest.mark.parametrize(
    "kind, cell, message",
    [
        ("label", 4, "class 4 does not exist"),
        ("label", -2, "class -2 does not exist"),
        ("mask", Image.new("L", (4, 4), 3), "class number 3"),
        ("mask", Image.new("RGB", (4, 4), "red"), "colours that stand for no class"),
        ("image", {"bytes": b"no picture", "path": None}, "could not be read as a picture"),
        ("image", {"bytes": None, "path": None}, "no picture was given"),
        ("embedding", [1.0, 2.0], r"expected 8 numbers, but got shape \(2,\)"),
    ],
)
def test_cells_that_cannot_be_stored(kind, cell, message):
    with pytest.raises(ValueError, match=message):
        build(kind).store(cell, SIZE)


# -- presentation ------------------------------------------------------------------------------------


def test_previews():
    photo = draw_shape(0, 0)
    shown = build("image").preview(np.moveaxis(photo, -1, 0) / 127.5 - 1)
    assert np.array_equal(np.asarray(shown), photo)
    mask = build("mask")
    indices = np.random.default_rng(0).integers(0, 3, (SIZE, SIZE))
    shown = mask.preview(np.moveaxis(np.eye(3)[indices], -1, 0))
    assert np.array_equal(np.asarray(shown), mask.palette[indices])
    assert build("label").preview(np.ones(4)) is None
    assert build("embedding").preview(np.ones(DIM)) is None
