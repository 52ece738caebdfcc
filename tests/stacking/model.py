"""What has to be on `send` after each step, from how the tools work, and the sequences.

Here it is a list of layers, the innermost first. How tools take themselves off:

- "top": they take off what is on top, be it theirs or not;
- "to saved": they put back what was there when they were put on;
- "own": what they change is not what we change.
"""

import itertools

STEPS = ("ours", "-ours", "theirs", "-theirs")


def sequences(tool, length=4):
    """All that make sense and are no beginning of another."""
    found = []
    for steps in itertools.product(STEPS, repeat=length):
        ours = theirs = False
        for before, step in zip((None,) + steps, steps):
            if step == before or (step == "-ours" and not ours):
                break
            if (step == "theirs" and theirs) or (step == "-theirs" and not (theirs and tool.removes)):
                break
            ours = step == "ours" or (ours and step != "-ours")
            theirs = step == "theirs" or (theirs and step != "-theirs")
        else:
            found.append(" ".join(steps))
    return found + list(tool.extra)


class Model:
    def __init__(self, tool):
        self.tool = tool
        self.active = False
        self.on = False  # Theirs, as they see it.
        self.layers = []
        self.imported = None

    def take(self, step):
        getattr(self, "_" + step.replace("-", "not_"))()

    def _ours(self):
        self.active = True
        if "ours" not in self.layers:
            self.layers.append("ours")

    def _not_ours(self):
        self.active = False
        if self.layers[-1:] == ["ours"]:
            self.layers.pop()

    def _import(self):
        if self.imported is None:
            self.imported = list(self.layers)

    def _theirs(self):
        self.on = True
        if self.tool.touches is None:
            return
        self._saved = list(self.layers)
        if getattr(self.tool, "keeps_from_import", False):
            self._import()
            self.layers = list(self.imported)
        self.layers.append("theirs")

    def _not_theirs(self):
        self.on = False
        if self.tool.removes == "top":
            self.layers.pop()
        elif self.tool.removes == "to saved":
            self.layers = list(self._saved)

    @property
    def guards(self):
        return self.layers.count("ours")

    @property
    def is_patched(self):
        return self.active and self.guards > 0

    @property
    def effects(self):
        """How often theirs acts on a request."""
        if self.tool.touches is None or self.tool.removes is None:
            return int(self.on)
        return self.layers.count("theirs")
