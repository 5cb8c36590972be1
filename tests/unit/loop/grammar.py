"""Random training cells from a grammar of what people write: a training step, and bookkeeping of many kinds around it.

Every cell is valid: names are made before the loop. `program(rng)` takes anything with `random.Random`'s methods, so that hypothesis can
choose (and shrink), and a fixed seed can too. Simple choices stand first.
"""

import ast
from dataclasses import dataclass
from textwrap import indent

from vocabulary import BY_VALUE, COUNTS, NAMES, NUMBERS, SHAPES, STEPS, STRUCTURAL


@dataclass(frozen=True)
class Program:
    """A cell; `by_value`: what it does next may depend on numbers that it computes."""

    code: str
    by_value: bool


def program(rng, *, by_value=True):
    """A random program; without `by_value` its branches follow from the loop alone."""
    return _Writer(rng, by_value).program()


class _Writer:
    def __init__(self, rng, may):
        self.rng, self.may, self.by_value, self.looping = rng, may, False, True

    def one(self, options):
        return self.rng.choice(options)

    def chance(self, percent):
        return self.rng.randint(0, 99) >= 100 - percent  # so that the least number is "no"

    # --- expressions ---------------------------------------------------------------------------------

    def condition(self):
        if self.may and self.chance(40):
            self.by_value = True
            return self.one(BY_VALUE)
        return self.one(STRUCTURAL).format(k=self.rng.randint(0, 4))

    def number(self):
        a, b = self.one(NUMBERS + COUNTS[:4]), self.one(NUMBERS + COUNTS[:4])
        a, b = (f"({v})" if " " in v else v for v in (a, b))
        if not self.chance(50):
            return a
        return self.one(SHAPES).format(a=a, b=b, c=self.condition())

    def count(self):
        return self.one(COUNTS)

    # --- statements -----------------------------------------------------------------------------------

    def simple(self):
        """One statement that needs no block."""
        n, c = self.number, self.count
        return self.one(
            (
                lambda: f"total += {n()}",
                lambda: f"seen += {self.one(('1', 'len(x)', 'y.size(0)'))}",
                lambda: f"losses.append({n()})",
                lambda: "step += 1",
                lambda: f"print(i, {n()})",
                lambda: f'print(f"{{i:>2}} {{{n()}:.4f}} {{seen}} {{loss.item()!r}}")',
                lambda: 'print("%d: %.3f" % (i, loss.item()), end=" | ")',
                lambda: 'print("{} {:.4f}".format(step, loss.item()), stats["n"], len(names), sep=", ")',
                lambda: "print(loss, out.shape, f'{loss:.3f}')",
                lambda: f"last = {n()}",
                lambda: f"total = {self.one(('0.0', '0.9 * total + 0.1 * loss.item()', 'total / 2'))}",
                lambda: f'stats["loss"].append({n()})',
                lambda: f'stats["n"] += {self.one(("1", "len(x)"))}',
                lambda: 'stats["by"]["even"] += i % 2 == 0',
                lambda: f"stats.update(last={n()})",
                lambda: f'stats.setdefault("more", []).append({n()})',
                lambda: f"meter.update({n()}, len(x))",
                lambda: "meter.reset()",
                lambda: "box.count += 1",
                lambda: f"box.last = {n()}",
                lambda: f"box.note({n()}).tick()",
                lambda: 'box.by["n"] += len(x)',
                lambda: "hits = box.tick(2)",
                lambda: f"groups[i % 2].append({n()})",
                lambda: "counts[i % 3] += 1",
                lambda: "counts.update(['a', 'b'][: i % 3])",
                lambda: f"recent.append({n()})",
                lambda: f"rows.append(Row(i, {n()}))",
                lambda: f'names.append("s%s" % ({c()}))',
                lambda: f"alias.extend([{n()}])",
                lambda: f"names += [str({c()})]",
                lambda: "kept.append(loss.detach())",
                lambda: "total_t += loss.detach()",
                lambda: "total_t = total_t + loss.detach()",
                lambda: "kept = kept[-2:] + [loss.detach().clone()]",
                lambda: "last = torch.stack([loss.detach(), out.detach().mean()]).sum().item()",
                lambda: f"a, b = {n()}, {c()}\nlosses.append(a + b)",
                lambda: f"first, *rest = [{n()}, {c()}, 2]\nbox.seen.append(len(rest))",
                lambda: "(p, q), r = (i, loss.item()), len(x)\nlast = q + p + r",
                lambda: f"a = b = {n()}\nlosses.append(a - b)",
                lambda: f"losses.extend(v * 0.5 for v in ({n()}, {n()}))",
                lambda: "norms = [w.grad.norm().item() for w in model.parameters() if w.grad is not None]\nlast = sum(norms)",
                lambda: "by = {k: v.item() for k, v in zip('ab', (loss.detach(), out.mean()))}\nlast = by['a']",
                lambda: "squares = {k * k for k in range(i)}\nseen += len(squares)",
                lambda: f"stats['pair'] = ({n()}, {c()})",
                lambda: "del losses[:-3]",
                lambda: "losses.sort()",
                lambda: "last = sorted(losses)[0] if losses else last",
                lambda: f"if (w := {n()}) is not None: names.append('w')",
                lambda: "sched.step()",
                lambda: 'opt.param_groups[0]["lr"] *= 0.95',
                lambda: "for g in opt.param_groups: g['lr'] = 0.02 / (1 + i)\ndel g",
                lambda: (
                    "with torch.no_grad():\n    for p, q in zip(ema.parameters(), model.parameters()):\n"
                    "        p.mul_(0.9).add_(q, alpha=0.1)"
                ),
                lambda: "with torch.no_grad():\n    hits += correct(model(x), y) * 0 + 1",
                lambda: "ema.load_state_dict(model.state_dict())",
                lambda: "model.eval()\nlast = correct(model(x), y)\nmodel.train()",
                lambda: "best = min(best, loss.item())",
                lambda: "scale = lambda v: v * len(x)\nlosses.append(scale(loss.item()))",
                lambda: "def plus(v, by=i):\n    return v + by\nlast = plus(loss.item())",
                lambda: "assert loss.item() == loss.item(), 'nan'",
            )
        )()

    def block(self, depth):
        return "\n".join(self.statement(depth) for _ in range(self.rng.randint(1, 2)))

    def leaving(self):
        said = self.one(("", "print('leaving', i)\n", "names.append('out')\n"))
        return f"if {self.condition()}:\n{indent(said + self.one(('continue', 'break')), '    ')}"

    def statement(self, depth):
        if depth <= 0 or not self.chance(35):
            return self.simple()

        def inner():
            return indent(self.block(depth - 1), "    ")

        return self.one(
            (
                lambda: f"if {self.condition()}:\n{inner()}",
                lambda: f"if {self.condition()}:\n{inner()}\nelse:\n{inner()}",
                lambda: f"if {self.condition()}:\n{inner()}\nelif {self.condition()}:\n{inner()}",
                lambda: f"if {self.condition()} and {self.condition()}:\n{inner()}",
                lambda: f"for k in range({self.one(('2', 'i % 3', 'len(x) // 2'))}):\n{inner()}\n    seen += k",
                lambda: f"turn{depth} = 0\nwhile turn{depth} < {self.one(('2', 'i'))}:\n    turn{depth} += 1\n{inner()}",
                lambda: (
                    f"for v in {self.one(('(1, 2)', 'y[:2]', 'y.tolist()[:2]', 'list(stats)[:2]'))}:\n{inner()}\n"
                    "    last = float(v) if not isinstance(v, str) else 0.0"
                ),
                lambda: (
                    f"try:\n{inner()}\n    hits += {self.one(('1 // (i - 1)', 'len(names[5])', 'int(math.sqrt(1 - i))'))}\n"
                    "except (ZeroDivisionError, IndexError, ValueError) as error:\n    names.append(type(error).__name__)"
                ),
                lambda: f"try:\n{inner()}\nfinally:\n    step += 1",
                lambda: f"with torch.no_grad():\n{inner()}",
            )
        )()

    # --- programs ---------------------------------------------------------------------------------------

    def body(self):
        before = [
            self.one(("x = x + 0.1 * torch.randn_like(x)", "x, y = x[:3], y[:3]", "if random.random() < 0.5: x = x.flip(0)", "step += 1"))
        ]
        parts = before if self.chance(25) else []
        parts.append(self.one(STEPS) if self.chance(60) else STEPS[0])
        parts += [self.statement(2) for _ in range(self.rng.randint(1, 5))]
        if self.chance(20):
            parts.insert(self.rng.randint(len(parts) - 1, len(parts)), self.leaving())
        if self.chance(6):
            parts.append(
                f"if i == {self.rng.randint(0, 4)}:\n"
                f"    raise {self.one(('ValueError(i)', 'RuntimeError(loss.item())', 'KeyError(str(step))'))}"
            )
        return "\n".join(parts)

    def header(self):
        return self.one(
            (
                ("for i, (x, y) in enumerate(loader):", ""),
                ("for i, batch_ in enumerate(loader):", "x, y = batch_"),
                ("for i in range(5):", "x, y = batch(4)"),
                ("for i, (x, y) in enumerate(zip(X.split(4), Y.split(4))):", ""),
                ("for i in range(0, 5):", "x, y = X[i * 3:i * 3 + 4], Y[i * 3:i * 3 + 4]"),
                ("for (x, y), i in zip(loader, range(9)):", ""),
            )
        )

    def program(self):
        head, first = self.header()
        loop = f"{head}\n{indent((first + chr(10) if first else '') + self.body(), '    ')}"
        if self.chance(15):
            loop += "\nelse:\n    print('to the end')"
        if self.chance(60):
            start = self.one(("total = 0.0", "meter.reset()", "opt.zero_grad()", "model.train()"))
            end = self.one(
                ("print(epoch, total, seen, meter)", "stats['loss'].append(total)", "sched.step()", "print(len(losses), stats['n'])")
            )
            loop = f"for epoch in range(2):\n{indent(start + chr(10) + loop + chr(10) + end, '    ')}"
        after = "print(total, seen, step, hits, len(losses), len(names), stats['n'], box.count, meter)"
        if self.chance(25):
            made = "return total, best, seen, step, hits, losses, alias, names, kept, last, stats, counts, groups, recent, meter, rows"
            code = f"def fit():\n{indent(NAMES + loop + chr(10) + after + chr(10) + made, '    ')}\nresult = fit()\n"
        else:
            code = f"{NAMES}{loop}\n{after}\n"
        ast.parse(code)  # a mistake of the grammar's must not look like an error of the program's
        return Program(code, self.by_value)
