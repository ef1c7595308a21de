"""Teachers against what they are: their answers are aimed at, to each face or to the images that the student sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from tests.train.devices import DEVICES
from tests.train.images import write_images
from torch import Generator, Tensor, nn

from fer_runtime.errors import CheckpointError, ModelFileError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.metadata import METADATA_KEY
from fer_runtime.recognizer import Recognizer
from fer_train.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from fer_train.data.folders import LabelledFaces, load_faces
from fer_train.loop.batch import Batch
from fer_train.loop.distill import FaceAnswers, ImageAnswers, Resizing, Teachers, face_logits, load_teachers
from fer_train.loop.trainer import Trainer
from fer_train.networks.architectures import ARCHITECTURES, Architecture
from fer_train.networks.registry import NetworkShape, create_network, predict_logits, to_network_input
from fer_train.recipes import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=32, optimizer="sgd", lr=0.01, augmentation="light")


class _Constant(nn.Module):
    """Answers class 3 to every image, and keeps what it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return F.one_hot(torch.full((len(images),), 3, device=images.device), 7) * 10.0


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledFaces, LabelledFaces]:
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FER_EDGE_CACHE", str(folder / "cache"))
        images = write_images(folder / "data", train=24, validation=6)
        return load_faces(images, "train"), load_faces(images, "validation")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("views", ["faces", "images"])
def test_a_teacher_pulls_the_student_towards_its_answers(
    faces: tuple[LabelledFaces, LabelledFaces], views: str, device: str
) -> None:
    # A teacher that takes every face for the same class, against the labels.
    stubborn = _Constant()
    answers: Teachers = ImageAnswers([stubborn])
    if views == "faces":
        answers = FaceAnswers(stubborn(torch.zeros(len(faces[0]), device=device)))
    torch.manual_seed(0)
    network: nn.Module = create_network("v0")
    recipe = RECIPE.overridden(epochs=6, batch_size=16, optimizer="adamw", lr=3e-3, teacher_weight=1.0)
    Trainer(network, *faces, recipe, device=torch.device(device), seed=0, teachers=answers).run()
    predictions = predict_logits(network, torch.from_numpy(faces[1].faces).to(device)).argmax(1)
    assert (predictions == 3).float().mean() > 0.9


def test_student_and_teacher_see_the_same_augmented_and_mixed_images(
    faces: tuple[LabelledFaces, LabelledFaces],
) -> None:
    teacher, seen = _Constant(), []
    network = create_network("v0")
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    recipe = RECIPE.overridden(mixup=0.4, cutmix=1.0)
    run = Trainer(network, *faces, recipe, device=CPU, seed=0, teachers=ImageAnswers([teacher]))
    run._train_epoch(1, _Quiet())
    assert len(teacher.seen) == len(seen) == 6  # 168 faces in batches of 32
    assert all(torch.equal(images, other) for images, other in zip(teacher.seen, seen, strict=True))
    whole = torch.from_numpy(faces[0].faces).float() / 255
    assert not any((whole == plane).all((1, 2)).any() for plane in teacher.seen[0][:, 0])


class _Quiet:
    def batch(self, *_: object) -> None: ...

    def epoch(self, *_: object) -> None: ...


class _Checked:
    """Teachers whose answers must be those to the images of the batch."""

    def __init__(self, network: nn.Module) -> None:
        self._answers, self._fresh = ImageAnswers([network]), ImageAnswers([network])
        self.calls = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def probabilities(self, batch: Batch, temperature: float) -> Tensor:
        answers = self._answers.probabilities(batch, temperature)
        calls = self.calls
        assert torch.equal(answers, self._fresh.probabilities(replace(batch, key=None), temperature))
        self.calls = calls
        return answers


def test_images_that_come_again_are_answered_once(faces: tuple[LabelledFaces, LabelledFaces]) -> None:
    teachers, seen = _Checked(create_network("v0").eval()), []
    network = create_network("v0")
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    recipe = RECIPE.overridden(epochs=6, mixup=0.4, mix_until=0.5, repeat_images=2)
    run = Trainer(network, *faces, recipe, device=CPU, seed=3, teachers=teachers)
    calls = []
    for epoch in range(1, 7):
        run._train_epoch(epoch, _Quiet())
        calls.append(teachers.calls)
    assert calls == [6, 12, 12, 18, 24, 24]  # 168 faces in batches of 32; without mixing, the images are others
    epochs = [torch.cat(seen[start : start + 6]) for start in range(0, 36, 6)]
    same = [(a, b) for a in range(6) for b in range(a) if torch.equal(epochs[a], epochs[b])]
    assert same == [(2, 0), (5, 3)]


def test_a_training_whose_images_come_again_resumes_with_the_same_ones(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path
) -> None:
    def trained(*, progress: _Quiet | None = None, resume: bool = False) -> list[float]:
        torch.manual_seed(0)
        teacher, network = create_network("v0").eval(), create_network("v0")
        recipe = RECIPE.overridden(epochs=3, repeat_images=2)
        run = Trainer(network, *faces, recipe, device=CPU, seed=3, teachers=ImageAnswers([teacher]))
        run.run(resume_path=tmp_path / "a.resume.pth", progress=progress, resume=resume)
        return run.history.test_loss

    with pytest.raises(KeyboardInterrupt):
        trained(progress=_StopsAfter(2))
    resumed = trained(resume=True)
    assert resumed == trained()


class _StopsAfter(_Quiet):
    def __init__(self, epoch: int) -> None:
        self._last = epoch

    def epoch(self, *given: object) -> None:
        if given[0] == self._last:
            raise KeyboardInterrupt


def test_several_teachers_answer_by_the_softmax_of_their_mean_logits() -> None:
    torch.manual_seed(0)
    teachers = [create_network("v0").eval(), create_network("v2").eval()]
    images = to_network_input(torch.randint(0, 256, (5, 48, 48), dtype=torch.uint8)).contiguous()
    batch = Batch(
        images=images,
        targets=torch.zeros(5, 7),
        indices=torch.arange(5),
        faces=5,
        weight=torch.tensor(5.0),
    )
    with torch.no_grad():
        expected = F.softmax((teachers[0](images) + teachers[1](images)) / 2 / 3.0, 1)
    # Where the processor has bfloat16, teachers answer in it: three digits.
    assert torch.allclose(ImageAnswers(teachers).probabilities(batch, 3.0), expected, atol=5e-3)


def test_answers_to_faces_are_those_to_the_face_and_its_mirror_image(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    network = create_network("v2").eval()
    file = tmp_path / "teacher.pth"
    save_checkpoint(file, Checkpoint(name="v2", state_dict=network.state_dict()))
    batch = Batch(
        images=torch.empty(0),
        targets=torch.empty(0),
        indices=torch.tensor([5, 0, 7]),
        faces=3,
        weight=torch.tensor(3.0),
    )
    planes = torch.from_numpy(faces[0].faces)[batch.indices].float()[:, None].expand(-1, 3, -1, -1) / 255
    with torch.no_grad():
        expected = F.softmax((network(planes) + network(planes.flip(-1))) / 2, 1)
    for _ in range(2):  # computed, then from the cache
        teachers = load_teachers([file], faces[0], CPU, views="faces")
        # float32 logits of size 1, sums of 576 products through 13 layers (epsilon 6e-8): some 1e-6, divided by 4.
        assert torch.allclose(teachers.probabilities(batch, 1.0), expected, atol=1e-5)
    assert len(list((tmp_path / "cache" / "teachers").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_a_pass_and_no_training(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    network = create_network("v2").eval()
    save_checkpoint(tmp_path / "teacher.pth", Checkpoint(name="v2", state_dict=network.state_dict()))
    logits = face_logits([tmp_path / "teacher.pth"], faces[0], CPU)
    assert logits.shape == (len(faces[0]), 7)


def test_a_network_of_your_own_teaches_once_a_plugin_registers_it(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "teacher.pth"
    save_checkpoint(file, Checkpoint(name="mine:network", state_dict=create_network("v2").state_dict()))
    with pytest.raises(CheckpointError, match=r"mine:network.*FER_EDGE_PLUGINS.*fer-export"):
        load_teachers([file], faces[0], CPU, views="images")
    # What the module does that FER_EDGE_PLUGINS names.
    entry = Architecture(name="mine:network", help="", build="fer_train.networks.face_resnet:FaceResNet")
    monkeypatch.setitem(ARCHITECTURES._entries, entry.name, entry)
    assert isinstance(load_teachers([file], faces[0], CPU, views="images"), ImageAnswers)


def test_a_file_that_is_no_teacher_is_named(faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path) -> None:
    damaged = tmp_path / "teacher.pth"
    damaged.write_bytes(b"no checkpoint")
    for views in ("faces", "images"):
        with pytest.raises(CheckpointError, match=r"teacher\.pth"):
            load_teachers([damaged], faces[0], CPU, views=views)


@pytest.mark.parametrize("views", ["faces", "images"])
def test_an_exported_model_teaches_with_the_probabilities_of_its_network(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: str
) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    file = Path("models/model_0.onnx")
    network = load_checkpoint(file.with_suffix(".pth"), name="v0").network().eval()
    indices = torch.tensor([5, 0, 7])
    planes = torch.from_numpy(faces[0].faces)[indices].float() / 255
    images = planes[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    batch = Batch(images=images, targets=torch.zeros(3, 7), indices=indices, faces=3, weight=torch.tensor(3.0))
    temperature = Recognizer(file).metadata.temperature
    with torch.no_grad():
        expected = F.log_softmax(network(images) / temperature, 1)
        if views == "faces":
            expected = (expected + F.log_softmax(network(images.flip(-1)) / temperature, 1)) / 2
    teachers = load_teachers([file], faces[0], CPU, views=views)
    # Two libraries in float32: the export allows 1e-4 of a logit of size 1; softmax at temperature 2 divides it by 8.
    assert torch.allclose(teachers.probabilities(batch, 2.0), F.softmax(expected / 2, 1), atol=5e-5)


@pytest.mark.parametrize(("size", "interpolation"), [(80, cv2.INTER_LINEAR), (16, cv2.INTER_AREA)])
def test_faces_are_resized_for_a_teacher_as_at_inference(size: int, interpolation: int) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    resized = torch.from_numpy(
        np.stack([cv2.resize(face, (size, size), interpolation=interpolation) for face in faces])
    )
    seen = Resizing(nn.Identity(), size)(to_network_input(torch.from_numpy(faces)))
    assert seen.shape == (3, 3, size, size)
    # OpenCV weighs pixels in steps of 1/2048 and rounds to whole gray levels.
    assert torch.allclose(seen, to_network_input(resized), atol=1 / 255)


def test_a_teacher_may_take_faces_of_another_size(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    network = create_network("v2", NetworkShape(size=80)).eval()
    file = tmp_path / "teacher.pth"
    save_checkpoint(file, Checkpoint(name="v2", state_dict=network.state_dict(), size=80))
    few = faces[0].subset(np.arange(3))
    images = to_network_input(torch.from_numpy(few.faces))
    with torch.no_grad():
        plain, mirrored = (network(F.interpolate(view, (80, 80), mode="bilinear")) for view in (images, images.flip(3)))
    # float32 in another order; of other pixels, a fresh network's logits differ in the second digit.
    assert torch.allclose(face_logits([file], few, CPU), (plain + mirrored) / 2, atol=1e-5)
    batch = Batch(images=images, targets=torch.zeros(3, 7), indices=torch.arange(3), faces=3, weight=torch.tensor(3.0))
    answers = load_teachers([file], few, CPU, views="images").probabilities(batch, 1.0)
    # bfloat16, in which teachers answer where the processor has it, has three digits.
    assert torch.allclose(answers, F.softmax(plain, 1), atol=5e-3)


def test_a_teacher_of_other_colours_is_named(faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    save_checkpoint(file, Checkpoint(name="v2", state_dict=create_network("v2").state_dict(), color="rgb"))
    with pytest.raises(CheckpointError, match=r"teacher\.pth.*takes rgb faces, the student gray ones"):
        load_teachers([file], faces[0], CPU, views="images")


def test_an_exported_model_that_cannot_teach_is_named(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path
) -> None:
    model = onnx.load("models/model_0.onnx")
    entry = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    entry.value = entry.value.replace('"surprise"', '"contempt"')
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    for name, reason in (
        ("other", "lacks surprise, and it also has contempt"),
        ("damaged", "cannot be read as an ONNX model"),
    ):
        with pytest.raises(ModelFileError, match=f"{name}.onnx.*{reason}"):
            load_teachers([tmp_path / f"{name}.onnx"], faces[0], CPU, views="images")


def test_a_checkpoint_with_its_classes_in_another_order_teaches_the_same(
    faces: tuple[LabelledFaces, LabelledFaces], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = create_network("v2").eval()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = {key: value[order] if value.shape[:1] == (7,) else value for key, value in network.state_dict().items()}
    checkpoint = Checkpoint(name="v2", state_dict=moved, expressions=tuple(EXPRESSIONS[index] for index in order))
    save_checkpoint(tmp_path / "moved.pth", checkpoint)
    save_checkpoint(tmp_path / "scaled.pth", replace(checkpoint, mean=0.5, std=0.25))
    planes = torch.from_numpy(faces[0].faces[:4])[:, None].expand(-1, 3, -1, -1) / 255
    batch = Batch(
        images=planes.contiguous(),
        targets=torch.zeros(4, 7),
        indices=torch.arange(4),
        faces=4,
        weight=torch.tensor(4.0),
    )
    with torch.no_grad():
        expected = F.softmax(network(planes), 1)
    answers = load_teachers([tmp_path / "moved.pth"], faces[0], CPU, views="images").probabilities(batch, 1.0)
    assert torch.allclose(answers, expected, atol=5e-3)
    with pytest.raises(CheckpointError, match=r"scaled\.pth normalizes faces with mean 0\.5 and std 0\.25"):
        load_teachers([tmp_path / "scaled.pth"], faces[0], CPU, views="images")


def test_teachers_of_images_are_not_shown_smaller_ones() -> None:
    with pytest.raises(ValueError, match="small_until=0"):
        RECIPE.overridden(teacher_views="images", small_until=0.5)
    with pytest.raises(ValueError, match="teacher_views must be one of"):
        RECIPE.overridden(teacher_views="both")


def test_both_answers_of_a_mixed_face_count_by_their_shares() -> None:
    logits = torch.randn(4, 7, generator=Generator().manual_seed(0))
    batch = Batch(
        images=torch.empty(0),
        targets=torch.empty(0),
        indices=torch.tensor([0, 1]),
        faces=2,
        weight=torch.tensor(2.0),
        partners=torch.tensor([2, 3]),
        own=torch.tensor([0.25, 1.0]),
    )
    answers = FaceAnswers(logits).probabilities(batch, 2.0)
    assert torch.allclose(answers[0], 0.25 * F.softmax(logits[0] / 2, 0) + 0.75 * F.softmax(logits[2] / 2, 0))
    assert torch.allclose(answers[1], F.softmax(logits[1] / 2, 0))
