"""Do networks of timm pass the gate in float32 and int8? Each is trained briefly on a part of FER2013 and exported.

python -m benchmarks.studies.foreign_int8 --data DATA --output OUT [NETWORK ...]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from fer_export.gate.report import ExportRefusedError
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model
from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.data.folders import load_faces
from fer_train.networks.registry import NetworkShape, create_network, to_network_input

NETWORKS = ("mobilenetv4_conv_small", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224")


def take_part(data: Path, folder: Path, *, train: int, validation: int) -> None:
    """Link so many images of each class, the first of a seeded order."""
    for split, count in (("train", train), ("validation", validation)):
        for place in sorted((data / "images" / split).iterdir()):
            names = sorted(os.listdir(place))
            chosen = np.random.default_rng(0).permutation(len(names))[:count]
            (folder / split / place.name).mkdir(parents=True, exist_ok=True)
            for index in chosen:
                link = folder / split / place.name / names[index]
                if not link.exists():
                    link.symlink_to(place / names[index])


def train_briefly(name: str, data: Path, *, steps: int) -> Checkpoint:
    """AdamW with a one-cycle schedule from fresh weights."""
    torch.manual_seed(0)
    train = load_faces(data, "train")
    network = create_network(name, NetworkShape(classes=len(train.classes))).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    faces, labels = torch.from_numpy(train.faces), torch.from_numpy(train.labels)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (32,))
        loss = torch.nn.functional.cross_entropy(network(to_network_input(faces[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return Checkpoint(
        name=name, state_dict=network.state_dict(), expressions=train.classes, training={"recipe": f"{steps} steps"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    part = given.output / "part"
    take_part(given.data, part, train=150, validation=90)
    for network in given.networks:
        started = time.perf_counter()
        name = f"timm:{network}"
        checkpoint = given.output / f"{network}.pth"
        if not checkpoint.exists():
            save_checkpoint(checkpoint, train_briefly(name, part, steps=given.steps))
        try:
            report = export_model(
                name,
                ExportOptions(
                    precisions=("fp32", "int8"), data=part, models_dir=given.output, keep_anyway=True, replace=True
                ),
                own_name=network,
                checkpoint=checkpoint,
            )
        except ExportRefusedError as error:
            report = error.report
        for model in report.models:
            print(
                f"{network} {model.precision} {model.outcome} {model.quantizer} {time.perf_counter() - started:.0f} s"
            )
            for check in model.parity.checks:
                print(f"  {check}", flush=True)


if __name__ == "__main__":
    main()
