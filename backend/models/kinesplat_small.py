# SPDX-License-Identifier: GPL-3.0-or-later
"""kinesplat-small, the model that comes with the program: loading its weights, checked against its card."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from backend.models.first_guess import Memory
from backend.models.motion_latents import MotionDecoder
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import Vocabulary
from backend.models.volume import VolumeConfig, VolumeNet
from backend.progress import UserError
from blender_addon.contract.arrays import atomic_file

FOLDER = Path(__file__).resolve().parent.parent / "weights" / "kinesplat-small"
CARD = "model.json"
MEMORY = "memory.safetensors"
FORMAT, VERSION = "kinesplat-small", 1
MAX_FILE_BYTES = 15 * 2**20


@dataclass(frozen=True)
class KinesplatSmall:
    """The networks, ready for use, in float32."""

    motion: SmallVideoNet  # static orbit -> motion latents
    decoder: MotionDecoder  # motion latents -> moving orbit
    static: VolumeNet | None  # text or image -> still subject, as a volume; None: first guesses are all there is
    memory: Memory  # of known subjects
    vocabulary: Vocabulary
    resolution: int  # pixels
    frames: int
    name: str  # with its version, for provenance
    licence: str

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.motion.parameters()).device


@cache
def load(folder: Path = FOLDER, device: str | None = None) -> KinesplatSmall:
    """The model in `folder`, its files checked; loaded once. `device`: None is the GPU where there is one.

    Raises:
        UserError: the files are missing, damaged or of another version.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    hint = "Install Kinesplat's backend again."
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if (card["format"], card["version"]) != (FORMAT, VERSION):
            raise UserError("weights_version", f"{folder} holds weights of another version.", hint)
        for name, digest in card["sha256"].items():
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise UserError("weights_damaged", f"{folder / name} is damaged: its checksum is wrong.", hint)
        vocabulary = Vocabulary(tuple(card["vocabulary"]))
        networks = {
            "motion": SmallVideoNet(SmallConfig(**_tuples(card["networks"]["motion"]))),
            "decoder": MotionDecoder(**card["networks"]["decoder"]),
        }
        if "static" in card["networks"]:
            networks["static"] = VolumeNet(VolumeConfig(**_tuples(card["networks"]["static"])))
        memory = Memory(tuple(card["subjects"]), **load_file(folder / MEMORY))
        for part, network in networks.items():
            tensors = {}
            for name in card["files"][part]:
                tensors.update(load_file(folder / name))
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            network.eval().requires_grad_(False).to(device)
        for network in (networks["motion"], networks["decoder"]):
            network.to(memory_format=torch.channels_last)
    except FileNotFoundError as error:
        raise UserError("weights_missing", f"The model's file {error.filename} is missing.", hint) from error
    except RuntimeError as error:  # names or shapes of tensors
        message = f"The weights in {folder} do not fit this version of the program."
        raise UserError("weights_version", message, hint) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError("weights_damaged", f"The model in {folder} cannot be loaded: {error}", hint) from error
    return KinesplatSmall(
        **{"static": None, **networks},
        memory=memory,
        vocabulary=vocabulary,
        resolution=card["resolution"],
        frames=card["frames"],
        name=card["name"],
        licence=card["licence"],
    )


def save(folder: Path, parts: dict[str, torch.nn.Module], vocabulary: Vocabulary, memory: Memory, about: dict) -> None:
    """Write a model: float16 safetensors in files of at most 15 MB, and the card with their checksums.

    `parts`: motion, decoder and, if it has one, static; `about`: name, licence, resolution, frames and whatever the
    card is to tell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, digests = {}, {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        content = serialize(tensors)
        with atomic_file(folder / name) as file:
            file.write(content)
        digests[name] = hashlib.sha256(content).hexdigest()

    write(MEMORY, {"starts": memory.starts, "places": memory.places, "colors": memory.colors})
    for part, network in parts.items():
        files[part] = []
        for number, tensors in enumerate(_shards(network.state_dict())):
            name = f"{part}-{number}.safetensors"
            write(name, tensors)
            files[part].append(name)
    card = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "networks": {
            part: network.sizes if part == "decoder" else asdict(network.config) for part, network in parts.items()
        },
        "vocabulary": vocabulary.words,
        "subjects": memory.subjects,
        "files": files,
        "sha256": digests,
    }
    with atomic_file(folder / CARD) as file:
        file.write(json.dumps(card, indent=1).encode())


def _tuples(sizes: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}


def _shards(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors in float16, in order, in parts that stay under the file size."""
    shards, size = [{}], 0
    for name, tensor in state.items():
        half = tensor.detach().to("cpu", torch.float16).contiguous()
        if size + half.nbytes > MAX_FILE_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = half
        size += half.nbytes
    return shards
