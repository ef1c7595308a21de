"""`fer-infer --self-test`: does this machine compute what was trained?"""

from __future__ import annotations

import click

from fer_runtime.cli.options import SelfTestRun
from fer_runtime.cli.recognizer import chosen_provider
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import find_model
from fer_runtime.model.self_test import run_self_test as replay
from fer_runtime.model.session import silence
from fer_runtime.shared_options import capped_threads
from fer_runtime.targets import target_of


def run_self_test(options: SelfTestRun) -> bool:
    """Replay the certificate of the model and print the report; whether it failed."""
    silence()
    path = find_model(options.model, precision=options.precision, models_dir=options.models_dir)
    threads = capped_threads(options.threads)
    if (target := target_of(path)) is not None:
        from fer_runtime.targets.replay import replay_target

        replayed = replay_target(path, target, threads=threads)
        click.echo(replayed.to_text())
        return not replayed.passed
    with needs_extra("sign"):
        report = replay(
            path,
            provider=chosen_provider(options, threads=threads),
            threads=threads,
            strict=options.strict,
            any_operator=options.any_operator,
            trusted=options.trust,
        )
    click.echo(report.to_text())
    return not report.passed
