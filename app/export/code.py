"""A run as a Python program to copy: through the page's endpoints, or with the library itself.

Everything that visitors typed is written as a literal, so no text can become code; pictures are inside as
base64, so the programs run as they stand.
"""

import base64
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from PIL import Image

from app.export.settings_file import png_bytes, to_json
from mmdiff.request import Request

CLIENT = """\
client = Client({address})
pictures, masks, result = client.predict(
{arguments}
    api_name="{endpoint}",
)
result.pop("embedding", None)  # the vectors, hundreds of numbers a sample
print(result)
print(*(pictures or []), *(masks or []), sep="\\n")  # files, one per sample
"""
FILE = '''
def file(name, data):
    """Writes a picture to a temporary file, to be sent."""
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(base64.b64decode(data))
    return handle_file(path)

'''
LIBRARY = """\
pipe = mmdiff.Pipeline.from_pretrained({checkpoint})
output = pipe(
{arguments}
)
for k, picture in enumerate(output.image or []):
    picture.save(f"image_{{k + 1}}.png")
for name, value in output.values.items():
    print(name, getattr(value, "shape", value))
"""
FORK = """\
        mmdiff.Change(
            after={after},
            request=mmdiff.Request(
{arguments}
            ),
        ),
"""
PNG = '''
def png(data):
    """The picture that a text stands for."""
    return Image.open(io.BytesIO(base64.b64decode(data)))

'''


def client_program(request: Request, address: str, checkpoint: str = "", task: str = "") -> str:
    """A program that runs the request through the page at this address, with `gradio_client`.

    It names the checkpoint, if one is given. Runs with forks go through “/run_settings”, whose only argument
    is the settings as JSON, with the checkpoint's and the task's name in them.
    """
    if request.changes:
        constants = {"SETTINGS": f'r"""{to_json(request, checkpoint, task)}"""'}  # JSON has no """ in it
        return _client(address, "/run_settings", {"settings": "SETTINGS"}, constants)
    constants, arguments = {}, {}
    for name, value in request.given.items():
        if isinstance(value, str):
            arguments["text" if name == "embedding" else name] = _literal(value)
        else:
            argument = "embedding_image" if name == "embedding" else name
            constants[argument.upper()] = _data(value)
            arguments[argument] = f'file("{argument}.png", {argument.upper()})'
    if request.known_pixels is not None:
        constants["HOLE"] = _data(~request.known_pixels)  # white where the photo is filled in
        arguments["hole"] = 'file("hole.png", HOLE)'
    arguments |= {"wanted": _literal(list(request.wanted))} | _numbers(request) | _guidance(request)
    arguments |= {"checkpoint": _literal(checkpoint)} if checkpoint else {}
    return _client(address, "/generate", arguments, constants)


def library_program(request: Request, checkpoint: str) -> str:
    """A program that does the same run with `mmdiff.Pipeline`; `checkpoint` is the path that it loads."""
    constants: dict[str, str] = {}
    arguments = _condition(request, "", constants) | _numbers(request)
    forks = ""
    for i, change in enumerate(request.changes, 1):
        fork = _condition(change.request, f"FORK_{i}_", constants)
        forks += FORK.format(after=change.after, arguments=_lines(fork, 16))
    if forks:
        arguments["changes"] = f"[\n{forks}    ]"
    imports = "import mmdiff\n"
    if constants:
        imports = "import base64\nimport io\n\nimport numpy as np\nfrom PIL import Image\n\n" + imports
    call = LIBRARY.format(checkpoint=_literal(checkpoint), arguments=_lines(arguments, 4))
    comment = "pip install -r requirements.txt, then run this beside mmdiff/"
    return _program(comment, imports, constants, PNG if constants else "", call)


def _client(address: str, endpoint: str, arguments: Mapping[str, str], constants: Mapping[str, str]) -> str:
    helper, imports = "", "from gradio_client import Client\n"
    if endpoint == "/generate" and constants:
        helper, imports = FILE, "import base64\nimport tempfile\nfrom pathlib import Path\n\n"
        imports += "from gradio_client import Client, handle_file\n"
    call = CLIENT.format(address=_literal(address), arguments=_lines(arguments, 4), endpoint=endpoint)
    return _program("pip install gradio_client", imports, constants, helper, call)


def _program(comment: str, imports: str, constants: Mapping[str, str], helper: str, call: str) -> str:
    assigned = [f"{name} = {literal}\n" for name, literal in constants.items()]
    return "\n".join([f"# {comment}\n{imports}", *assigned, *filter(None, [helper]), call])


def _numbers(request: Request) -> dict[str, str]:
    """Steps and so on; the sampler only where it is not as by default."""
    numbers = {name: _literal(getattr(request, name)) for name in ("steps", "seed", "num_samples")}
    if request.sampler != Request().sampler:
        numbers["sampler"] = _literal(request.sampler)
    if request.leads is not None:
        numbers["leads"] = _literal(dict(request.leads))
    return numbers


def _guidance(request: Request) -> dict[str, str]:
    """The guidance, without scales of 1, and `sample_first`; each only if there is any."""
    scales = request.guidance_scale
    if isinstance(scales, Mapping):
        scales = {name: scale for name, scale in scales.items() if scale != 1} or 1
    guidance = {} if scales == 1 else {"guidance_scale": _literal(scales)}
    first = list(request.sample_first)
    return guidance | ({"sample_first": _literal(first)} if first else {})


def _condition(request: Request, prefix: str, constants: dict[str, str]) -> dict[str, str]:
    """The library's arguments that a change may have, too; pictures become constants."""
    given = {}
    for name, value in request.given.items():
        if isinstance(value, str):
            given[name] = _literal(value)
            continue
        constants[f"{prefix}{name.upper()}"] = _data(value)
        png = f"png({prefix}{name.upper()})"
        given[name] = png if isinstance(value, Image.Image) else f"np.asarray({png})"
    literal = ", ".join(f"{_literal(name)}: {text}" for name, text in given.items())
    arguments = {"given": f"{{{literal}}}", "wanted": _literal(list(request.wanted))}
    if request.known_pixels is not None:
        constants[f"{prefix}KNOWN_PIXELS"] = _data(request.known_pixels)
        arguments["known_pixels"] = f"np.asarray(png({prefix}KNOWN_PIXELS))"
    return arguments | _guidance(request)


def _literal(value: Any) -> str:
    """Texts, numbers, lists and dicts as Python; JSON of these is Python, with the quotes people use."""
    return json.dumps(value, ensure_ascii=False)


def _data(value: Any) -> str:
    """A picture as a literal of base64, in lines that can be read past."""
    lines = textwrap.wrap(base64.b64encode(png_bytes(value)).decode(), 100)
    return '"""\n' + "\n".join(lines) + '\n"""'


def _lines(arguments: Mapping[str, str], indent: int) -> str:
    """One argument a line."""
    return "\n".join(f"{' ' * indent}{name}={text}," for name, text in arguments.items())
