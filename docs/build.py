"""Writes the documentation's generated parts from the code: a page a method, and the tables between markers.

    python docs/build.py            writes docs/methods/ and the tables in README.md and docs/

mkdocs runs this file as a hook, so that its navigation lists the methods.
"""

import ast
import inspect
import json
import re
import sys
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOURCE = ROOT / "src" / "selfsight"
if not any(Path(path).resolve() == ROOT / "src" for path in sys.path):
    sys.path.insert(0, str(ROOT / "src"))

from selfsight.recipes.catalogue import FAMILIES, Card, hyper_parameters, listed, recipe_function  # noqa: E402

NO_RESULT = "–"


def docstring(path: Path) -> str:
    """A module's docstring, without running it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def to_markdown(text: str) -> str:
    r"""The little reStructuredText that docstrings use, as Markdown.

    >>> print(to_markdown("With :math:`h`, ``x`` and\n\n.. math:: L = 1\n    + 2\n\nend."))
    With $h$, `x` and
    <BLANKLINE>
    $$
    L = 1
    + 2
    $$
    <BLANKLINE>
    end.
    """
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)

    def display(match: re.Match[str]) -> str:
        lines = [line.strip() for line in match[1].splitlines() if line.strip()]
        return "\n".join(["$$", *lines, "$$", ""])

    return re.sub(r"^\.\. math::((?:.*\n?)(?:[ \t]+\S.*\n?|[ \t]*\n(?=[ \t]+\S))*)", display, text, flags=re.MULTILINE)


def ladder(name: str = "ladder") -> dict[str, Any]:
    """A committed ladder, ``benchmarks/results/ladder.json`` or a longer one; empty where there is none."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def measured(name: str = "ladder") -> dict[str, dict[str, Any]]:
    """What the ladder measured of each recipe; a training that failed was not measured."""
    return {recipe: entry for recipe, entry in ladder(name).get("methods", {}).items() if "linear" in entry}


LADDERS = {
    "ladder": ("CIFAR-10", "linear", "the-ladder"),
    "ladder_masked": ("CIFAR-10", "finetuned", "masked-methods"),
    "ladder_caltech": ("Caltech-101", "linear", "pretext-tasks"),
}
"""The committed ladders that list a recipe: on which data, its score, and where Evaluation tells of it."""
SCORES = {"linear": "linear", "finetuned": "fine-tuned"}
MASKED_FIRST = ("ladder_masked", "ladder", "ladder_caltech")
"""Of a recipe in several ladders, the one whose score stands in the table."""


def known() -> set[str]:
    """The recipes with a committed result: those on a ladder, and the tokenizer."""
    return {name for which in LADDERS for name in measured(which)} | set(ladder("tokenizer").get("methods", {}))


def start_of(which: str, row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a row's encoder at its random start."""
    return ladder(which)["baselines"].get(row["encoder"], {})


def score(name: str) -> str:
    """A recipe's cells in the table of methods: data, score, and the points over the same encoder untrained."""
    for which in MASKED_FIRST:
        row = measured(which).get(name)
        if row:
            data, key, _ = LADDERS[which]
            before = start_of(which, row).get(key)
            gain = NO_RESULT if before is None else f"{100 * (row[key] - before):+.1f}"
            return f"{data}, {SCORES[key]} | {percent(row[key])} | {gain}"
    return f"{NO_RESULT} | {NO_RESULT} | {NO_RESULT}"


def percent(value: Any) -> str:
    """A share as a percentage; a dash where there is none."""
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else NO_RESULT


def methods_table() -> str:
    """The table of methods: one row a recipe, oldest paper first, with its ladder score where it was measured."""
    lines = [
        "| Recipe | Method | Year | Family | What it does | Measured on | Score | Gain |",
        "|---|---|--:|---|---|---|--:|--:|",
    ]
    for name, card in listed().items():
        paper = f"[{card.title}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.title
        lines.append(f"| `{name}` | {paper} | {card.year} | {card.family} | {card.fact} | {score(name)} |")
    return "\n".join(lines)


def ladder_table(which: str = "ladder") -> str:
    """The ladder whole: scores, what they cost and what is not the recipe's, with the baselines below."""
    result = ladder(which)
    if not result:
        return "Not measured yet."
    tuned = bool(result["rules"].get("labels"))
    extra = " Fine-tuned |" if tuned else ""

    def scores(row: dict[str, Any]) -> str:
        return " | ".join(percent(row.get(key)) for key in ("knn", "linear", *(["finetuned"] if tuned else [])))

    lines = [
        f"| | Encoder | kNN | Linear |{extra} Epochs | CPU minutes | What is not the recipe's |",
        f"|---|---|--:|--:|{'--:|' if tuned else ''}--:|--:|---|",
    ]
    by = "finetuned" if tuned else "linear"
    for name, row in sorted(measured(which).items(), key=lambda item: -item[1][by]):
        own = {key: value for key, value in row["flags"].items() if key not in ("backbone", "patch_size", "tokenizer")}
        flags = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in own.items())
        lines.append(
            f"| `{name}` | {row['encoder']} | {scores(row)} | {row['epochs']} | {row['cpu_minutes']:.1f} | {flags} |"
        )
    for name, row in result["baselines"].items():
        title = "raw pixels | –" if name == "pixels" else f"random encoder | {name}"
        lines.append(f"| {title} | {scores(row)} | – | – | |")
    return "\n".join([*lines, "", where(result)])


def layers_table() -> str:
    """Of each pretext task: how well it is solved on images not seen, and a linear probe behind each stage."""
    result = ladder("pretext")
    if not result:
        return "Not measured yet."
    stages = list(next(iter(result["random"].values())))
    lines = [
        f"| | Its task | Held-out images | Seen ones | Untrained | {' | '.join(f'`{stage}`' for stage in stages)} |",
        f"|---|---|--:|--:|--:|{'--:|' * len(stages)}",
    ]
    for name, row in sorted(result["methods"].items()):
        cells = " | ".join(percent(row["layers"].get(stage)) for stage in stages)
        lines.append(f"| `{name}` | {' | '.join(solved(row['task']))} | {cells} |")
    for kind, row in result["random"].items():
        cells = " | ".join(percent(row.get(stage)) for stage in stages)
        lines.append(f"| random encoder | {kind} | – | – | – | {cells} |")
    data = result["data"]
    about = (
        f"{data['name']}: {data['train']:,} training and {data['test']:,} test images; probes of "
        f"{result['probe_epochs']} epochs, seed {result['seed']}; {result['machine']['processor']}, "
        f"torch {result['versions']['torch']}, {result['date']}."
    )
    return "\n".join([*lines, "", about])


def single_table() -> str:
    """What one photograph teaches each stage, beside many images and none."""
    result = ladder("single_image")
    if not result:
        return "Not measured yet."
    stages = list(result["rows"][0]["stages"])
    lines = [
        f"| Trained on | Images | Epochs | CPU minutes | {' | '.join(f'`{stage}`' for stage in stages)} |",
        f"|---|--:|--:|--:|{'--:|' * len(stages)}",
    ]
    for row in result["rows"]:
        cells = " | ".join(percent(row["stages"][stage]) for stage in stages)
        given = (row.get(key) for key in ("samples", "epochs", "training_cpu_minutes"))  # no time where a run went on
        cost = [NO_RESULT if one is None else f"{one:,}" for one in given]
        what = f"`{row['method']}`, {row['images']}" if row["method"] else "nothing: random encoder"
        lines.append(f"| {what} | {' | '.join(cost)} | {cells} |")
    about, machine = result["settings"], result["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"{about['photo']} and {about['data']}, {about['encoder']}; linear probes of {about['probe']['epochs']} "
            f"epochs on {about['probe']['samples']:,} labelled images; {machine['cpu']}, "
            f"torch {result['versions']['torch']}, {result['date']}.",
        ]
    )


def solved(task: dict[str, Any]) -> list[str]:
    """What is measured of a task, and its value on held-out images, on seen ones and before training."""
    if not task:
        return ["classes are the training images", NO_RESULT, NO_RESULT, NO_RESULT]
    key = next((key for key in task["trained"] if key.endswith("accuracy")), "loss")
    values = [task[who].get(key) for who in ("trained", "seen", "untrained")]
    shown = [percent(value) if key.endswith("accuracy") else f"{value:.3g}" for value in values]
    return [key.replace("_", " "), *shown]


def tokenizer_table() -> str:
    """What a tokenizer was measured by: how well codes paint held-out images again, and how many are in use."""
    result = ladder("tokenizer")
    if not result:
        return "Not measured yet."
    lines = [
        "| | Squared error, held-out | Untrained | The images' variance | Codes in use | Perplexity |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in result["methods"].items():
        after, before = row["task"]["trained"], row["task"]["untrained"]
        about_it = f"`{name}`, {row['encoder']}, {row['codes']} codes, {row['updates']:,} updates"
        lines.append(
            f"| {about_it} | {after['error']:.4f} | {before['error']:.4f} | {row['variance']:.4f} | "
            f"{percent(after['codes_used'])} | {after['perplexity']:.0f} |"
        )
    about = (
        f"{result['data']}; pixels from 0 to 1; codes in use and perplexity within a batch; seed {result['seed']}; "
        f"{result['machine']['processor']}, torch {result['versions']['torch']}, {result['date']}."
    )
    return "\n".join([*lines, "", about])


def where(result: dict[str, Any]) -> str:
    """Data, seed, machine and versions of the ladder."""
    rules, data = result["rules"], result["data"]
    rows = [row for row in result["methods"].values() if "linear" in row]
    machines = sorted({row["machine"]["processor"] for row in rows})
    torches = sorted({row["versions"]["torch"] for row in rows})
    return (
        f"{data['name']}: {data['train']:,} training and {data['test']:,} test images; "
        f"trainings estimated at {rules['cpu_minutes']:g} CPU minutes on {rules['threads']} thread, "
        f"seed {rules['seed']}; scores of the last weights; {', '.join(machines)}, torch {', '.join(torches)}."
    )


def speed_table() -> str:
    """Each benchmark's lines, below the machine and the date they are from."""
    parts: list[str] = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = result.get("rows", [])
        if not rows or not all("ratio" in row for row in rows):
            continue
        machine, versions = result["machine"], result["versions"]
        where = f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}"
        others = [f"{name} {version}" for name, version in versions.items() if name not in ("python", "torch")]
        lines = [
            f"`benchmarks/{path.stem.removesuffix('_cuda')}.py`: {', '.join([where, *others])}; {result['date']}.",
            "",
            "| | Ours | | Theirs | Ratio | Target |",
            "|---|--:|---|--:|--:|---|",
        ]
        lines += [f"| {_speed_row(row)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not measured yet."


def _speed_row(row: dict[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    target = NO_RESULT if row["target"] is None else f"{row['target']:g}: {'met' if row['met'] else 'not met'}"
    return (
        f"{row['what']} | {row['ours']:,g}{unit} | {row['against']} | {row['theirs']:,g}{unit} | "
        f"{row['ratio']:.2f} | {target}"
    )


def alarms_table() -> str:
    """The monitors' alarms with cause and advice, as the engine gives them."""
    from selfsight.engine.monitors import ADVICE  # noqa: PLC0415 - imports torch

    rows = [f"| `{name}` | {cause} | {advice} |" for name, (cause, advice) in ADVICE.items()]
    return "\n".join(["| Alarm | What it means | What to change |", "|---|---|---|", *rows])


def flags_table(name: str) -> str:
    """A recipe's own flags: name, type, default and what the docstring says of each."""
    import docstring_parser  # noqa: PLC0415

    parsed = docstring_parser.parse(recipe_function(name).__doc__ or "")
    described = {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    rows: list[str] = []
    for key, parameter in hyper_parameters(name).items():
        kind = inspect.formatannotation(parameter.annotation).replace("|", "\\|").replace("typing.", "")
        default = "by the recipe" if parameter.default is None else f"`{parameter.default}`"
        rows.append(f"| `--{key.replace('_', '-')}` | {kind} | {default} | {to_markdown(described.get(key, ''))} |")
    if not rows:
        return "None: the method has no hyper-parameter of its own."
    return "\n".join(["| Flag | Type | Default | |", "|---|---|---|---|", *rows])


def results_table(name: str) -> str:
    """What was measured of a recipe, beside its encoder at random start, with where it came from."""
    parts: list[str] = []
    for which, (data, _, anchor) in LADDERS.items():
        row = measured(which).get(name)
        if not row:
            continue
        tuned = "finetuned" in row
        whose = {f"[{data}](../evaluation.md#{anchor})": row, "the same encoder untrained": start_of(which, row)}
        lines = [
            f"| | kNN | Linear |{' Fine-tuned |' if tuned else ''} Epochs | CPU minutes |",
            f"|---|--:|--:|{'--:|' if tuned else ''}--:|--:|",
        ]
        for who, scores in whose.items():
            keys = ("knn", "linear", *(["finetuned"] if tuned else []))
            cells = " | ".join(percent(scores.get(key)) for key in keys)
            cost = f"{row['epochs']} | {row['cpu_minutes']:.1f}" if scores is row else "– | –"
            lines.append(f"| {who} | {cells} | {cost} |")
        parts.append("\n".join([*lines, "", where(ladder(which))]))
    if name in ladder("pretext").get("methods", {}):
        its = [
            line for line in layers_table().splitlines() if not line.startswith("| `") or line.startswith(f"| `{name}`")
        ]
        parts.append("\n".join(its))
    if name in ladder("tokenizer").get("methods", {}):
        parts.append(tokenizer_table())
    return "\n\n".join(parts) or "Nothing has been measured for this recipe yet."


def method_module(card: Card) -> str:
    """The method's own module, as the recipe's module names it."""
    found = re.search(
        r"selfsight\.methods\.(\w+)", (SOURCE / "recipes" / f"{card.module}.py").read_text(encoding="utf-8")
    )
    return found[1] if found else card.module


def picture(name: str) -> list[str]:
    """The picture of what a method sees, where one was drawn (``docs/pictures.py views``), and how to draw another."""
    if not (HERE / "images" / "views" / f"{name}.webp").is_file():
        return []
    return [
        f"What the network sees, three images of the embedded world at 96 px beside their views "
        f"(`selfsight views {name} --data images/`):",
        f"![Images and what {name} makes of them](../images/views/{name}.webp)",
    ]


def command_of(card: Card) -> str:
    """How a recipe is run, with what must be run before it."""
    if card.needs != "tokenizer":
        return f"selfsight pretrain {card.name} --data images/"
    before = "selfsight pretrain dvae --data images/ --out runs/dvae"
    return f"{before}\nselfsight pretrain {card.name} --data images/ --tokenizer runs/dvae"


def method_page(card: Card) -> str:
    """One recipe's page: the method and its equations, the recipe, its flags, its results."""
    module = method_module(card)
    title, _, body = docstring(SOURCE / "methods" / f"{module}.py").partition("\n")
    recipe = docstring(SOURCE / "recipes" / f"{card.module}.py")
    return "\n\n".join(
        [
            f"# {card.title}",
            to_markdown(title.partition(": ")[2][:1].upper() + title.partition(": ")[2][1:]),
            f"```\n{command_of(card)}\n```",
            *picture(card.name),
            to_markdown(body).strip(),
            "## The recipe",
            to_markdown(recipe),
            "## Flags of its own",
            flags_table(card.name),
            "## Measured",
            results_table(card.name),
            f"Code: `selfsight/methods/{module}.py`, `selfsight/recipes/{card.module}.py`.",
            "",
        ]
    )


def filled(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda match: f"{match[1]}\n\n{table}\n\n{match[2]}", text)


TABLES = [
    (ROOT / "README.md", "methods", methods_table),
    (HERE / "monitors.md", "alarms", alarms_table),
    (HERE / "evaluation.md", "ladder", ladder_table),
    (HERE / "evaluation.md", "longer", partial(ladder_table, "ladder_24")),
    (HERE / "evaluation.md", "easier", partial(ladder_table, "ladder_world")),
    (HERE / "evaluation.md", "easier-longer", partial(ladder_table, "ladder_world_5")),
    (HERE / "evaluation.md", "masked", partial(ladder_table, "ladder_masked")),
    (HERE / "evaluation.md", "pretext", partial(ladder_table, "ladder_caltech")),
    (HERE / "evaluation.md", "layers", layers_table),
    (HERE / "evaluation.md", "tokenizer", tokenizer_table),
    (HERE / "evaluation.md", "single", single_table),
    (HERE / "speed.md", "speed", speed_table),
]
"""Each generated table: its page, its markers, what gives it.

``ladder_24`` is the ladder at twice the time; ``ladder_world`` is that on the embedded world, and ``ladder_world_5``
the same at twice the time.
"""


def write(path: Path, text: str) -> None:
    """Writes a file whose content changed, so that a server that watches it comes to rest."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def build() -> None:
    """Writes every generated part."""
    for path, name, table in TABLES:
        write(path, filled(path.read_text(encoding="utf-8"), name, table()))
    scores = (
        "Score: of the ladders in Evaluation, each a few CPU minutes of training. Gain: points over the same encoder "
        "at its random start, measured alike."
    )
    write(HERE / "methods" / "index.md", f"# Methods\n\n{methods_table()}\n\n{scores}\n")
    for page in (HERE / "methods").glob("*.md"):
        if page.stem not in (*listed(), "index"):
            page.unlink()
    for name, card in listed().items():
        write(HERE / "methods" / f"{name}.md", method_page(card))


def on_config(config: Any) -> Any:
    """mkdocs' hook: writes the pages, then lists them in the navigation by family."""
    build()
    methods: list[Any] = [{"Overview": "methods/index.md"}]
    for family in FAMILIES:
        pages = [{card.title: f"methods/{name}.md"} for name, card in listed().items() if card.family == family]
        methods += [{family.capitalize(): pages}] if pages else []
    config["nav"] = [{"Methods": methods} if "Methods" in entry else entry for entry in config["nav"]]
    return config


def on_page_content(html: str, **given: Any) -> str:
    """mkdocs' hook: equations become MathML, which browsers show without a script from elsewhere."""
    from latex2mathml.converter import convert  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    def mathml(match: re.Match[str]) -> str:
        display, tex = match["open"] == "[", unescape(match["tex"]).strip()
        return convert(tex, display="block" if display else "inline")

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, mathml, html, flags=re.DOTALL)


if __name__ == "__main__":
    build()
