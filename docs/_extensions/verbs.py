"""The directive ``verbs``: every verb of the command line and its options, as the parser has them at the build."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from atlasnet.cli.main import parser


class Verbs(Directive):
    """Takes neither arguments nor content."""

    def run(self) -> list[nodes.Node]:
        """A section for each verb."""
        sections: list[nodes.Node] = []
        for verb, description in commands(parser()):
            # The two dashes before an option stay two.
            section = nodes.section(ids=[nodes.make_id(verb.prog)], support_smartquotes=False)
            section += nodes.title("", verb.prog)
            section += nodes.paragraph("", f"{description[:1].upper()}{description[1:]}.")
            usage = verb.format_usage().rstrip().replace("usage: ", "").replace("\n       ", "\n")
            section += nodes.literal_block(usage, usage, language="none")
            for title, actions in groups(verb):
                section += nodes.rubric("", title[:1].upper() + title[1:])
                section += options(actions)
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def commands(command: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every parser below this one that does something, with what it does."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                below = list(commands(sub))
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                yield from below or [(sub, helps[name])]


def groups(command: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Its groups of arguments, but for ``--help``, which all have."""
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            yield group.title or "", actions


def options(actions: list[argparse.Action]) -> nodes.definition_list:
    """What each is called and what it says of itself."""
    listed = nodes.definition_list(classes=["options"])
    for action in actions:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        metavar = action.metavar or choices or action.dest.upper()
        values = metavar if isinstance(metavar, str) else " ".join(metavar)
        names = [f"{name} {values}" if action.nargs != 0 else name for name in action.option_strings] or [values]
        term = nodes.term()
        for number, name in enumerate(names):
            term += [nodes.Text(", "), nodes.literal("", name)] if number else [nodes.literal("", name)]
        text = (action.help or "") % {**vars(action), "prog": "atlasnet"}
        listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", text)))
    return listed


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.add_directive("verbs", Verbs)
    return {"parallel_read_safe": True}
