"""This package: a hub with local workers. The strategy is the config's `way`."""

from __future__ import annotations

import work


def main() -> None:
    settings = work.config()
    from common.fleet import state_folder

    from depin_nb import wiring

    task = work.tasks.digits(epochs=settings["epochs"], batch=settings["batch"], hidden=settings["hidden"], seed=settings["seed"])
    with state_folder():
        session = wiring.connect("local", workers=settings["workers"])
        work.tasks.synthetic(iterations=8, batch=8, width=64, hidden=32).leased(session, strategy="local", inner_steps=1)
        ran = task.leased(session, strategy=settings["way"], inner_steps=settings["inner_steps"] if settings["way"] == "local" else None)
        result = work.Work(settings)
        result.held_out, result.at_s = ran.namespace["held_out"], ran.namespace["at_s"]
        result.tell()


if __name__ == "__main__":
    main()
