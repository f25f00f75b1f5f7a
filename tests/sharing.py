"""How processes of `pytest --numprocesses` share the tests; what a process that dies leaves."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling


class ClusterApart(LoadScopeScheduling):
    """All that needs the Ray cluster in one process, in order; other files wherever is room.

    A process that dies fails the test it was at; what it had not begun is handed out again. xdist
    3.8.0 hands all of it out again, what was done included: a file with nothing left to run is
    never answered for, and the run waits for ever.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if "integration/" in nodeid else nodeid.split("::", 1)[0]

    def remove_node(self, node: Any) -> str | None:
        """Takes a process out, ended or dead. The test that it was at; None: it was at none."""
        units = self.assigned_work.pop(node)
        left = [nodeid for unit in units.values() for nodeid, done in unit.items() if not done]
        if not left:
            return None
        for scope, unit in units.items():
            if rest := [nodeid for nodeid in left[1:] if nodeid in unit]:
                self.workqueue[scope] = dict.fromkeys(rest, False)
        for other in self.nodes:
            self._reschedule(other)
        return left[0]

    def _reschedule(self, node: Any) -> None:
        """Hands out work until the process has two tests, or knows that there is no more.

        xdist's processes start a test only when they know the next. One that takes a dead one's
        place may not have collected yet, and asks when it has.
        """
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
