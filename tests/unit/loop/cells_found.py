"""Cases that random programs (grammar.py) found, each as small as it still failed."""

from catalogue import Cell
from vocabulary import NAMES, SETUP

STEP = """
        opt.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        opt.step()
"""


def _epochs(statements, *, head="for i, (x, y) in enumerate(loader):"):
    body = "".join(f"        {line}\n" for line in statements.splitlines())
    return f"{NAMES}for epoch in range(2):\n    {head}{STEP}{body}print(total, seen, last, losses, names)\n"


CELLS = {
    "found: a lambda made anew in each iteration": Cell(  # what one entry left under its name couldn't be sent by the next
        _epochs("scale = lambda v: v * len(x)\nlosses.append(scale(loss.item()))") + "del scale\n", SETUP
    ),
    "found: a function made anew in each iteration": Cell(
        _epochs("def plus(v, by=i):\n    return v + by\nlast = plus(loss.item())") + "del plus\n", SETUP
    ),
    "found: the last tensors in a new list each time": Cell(  # with its worker lost, the list had to go on
        _epochs("kept = kept[-2:] + [loss.detach().clone()]\nlast = torch.stack(kept).sum().item()") + "print(len(kept))\n",
        SETUP,
        solo="`kept`",
    ),
    "found: an error in the middle of the second epoch": Cell(
        "def fit():\n"
        + "".join(f"    {line}\n" for line in _epochs("seen += 1\nif seen == 8:\n    raise ValueError(seen, loss.item())").splitlines())
        + "try:\n    fit()\nexcept ValueError as error:\n    print(type(error).__name__, len(error.args))\n",
        SETUP,
    ),
    "found: a scheduler that steps before the optimizer does": Cell(
        f"{NAMES}for i, (x, y) in enumerate(loader):\n    out = model(x)\n    loss = F.cross_entropy(out, y)\n    opt.zero_grad()\n"
        "    loss.backward()\n    sched.step()\n    opt.step()\n    losses.append(sched.get_last_lr()[0])\nprint(losses)\n",
        SETUP,
    ),
    "found: gradients from before, cleared by the worker that was lost": Cell(  # what it had cleared came back with the next one
        "F.cross_entropy(model(X), Y).backward()\nfor i, (x, y) in enumerate(loader):\n    loss = F.cross_entropy(model(x), y) / 2\n"
        "    loss.backward()\n    if (i + 1) % 2 == 0:\n        opt.step()\n        opt.zero_grad()\n    print(i, loss.item())\n",
        SETUP,
        solo="gradients",
    ),
    "found: a name for a part of the model, from some iterations": Cell(  # it came back as a copy, which then stood still
        _epochs(
            "if i % 3 == 1:\n    for p, q in zip(ema.parameters(), model.parameters()):\n        p.data.mul_(0.9).add_(q.data, alpha=0.1)\n"
            "    for layer in model.modules():\n        pass"
        )
        + "print(q is list(model.parameters())[-1], p is list(ema.parameters())[-1], layer is list(model.modules())[-1])\n",
        SETUP,
    ),
}
