"""Roles in vLLM: adapters of the Main Brain, loaded like a student's once vLLM answers, and kept in its memory.

vLLM cannot pin an adapter over HTTP. It keeps those that were used last: `--max-loras` in slots of the device,
`--max-cpu-loras` in memory. It reads any other from its folder again, and all replies wait for that. So a role reads
one token whenever some other adapters have been used since it was used last. Knows nothing of students.
"""

import asyncio
from dataclasses import dataclass, field

from brain_server.vllm_engine.adapter_folders import AdapterFolders, VllmAdapter
from brain_server.vllm_engine.client import VllmClient, VllmRefused, VllmUnreachable
from mesh.errors import AdapterCorrupt, AdapterIncompatible
from mesh.log import get_logger
from mesh.main_brain.files import MainBrainFiles
from mesh.main_brain.roles import RoleName

_log = get_logger(__name__)

# Fewer than `--max-loras` of any sensible vLLM, so that a role keeps its slot.
_MAX_OTHERS = 4
# Any token will do.
_PROBE = (0,)


@dataclass(slots=True, kw_only=True, eq=False)
class _LoadedRole:
    """A role in vLLM.

    Attributes:
        adapter: What completions name it by.
        others: Names of the adapters that were used since it was used last.
        reading: Has it read a token, while it does.
    """

    adapter: VllmAdapter
    others: set[str] = field(default_factory=set)
    reading: asyncio.Task[None] | None = None


class VllmRoles:
    """The roles in one vLLM server. For the event loop alone.

    Attributes:
        main_brain: The Main Brain, without the roles that failed.
    """

    def __init__(self, client: VllmClient, folders: AdapterFolders, *, main_brain: MainBrainFiles) -> None:
        """Loads nothing yet.

        Args:
            client: A client of the server.
            folders: Loads adapters into it.
            main_brain: What vLLM serves, with the roles to load.
        """
        self.main_brain = main_brain
        self._client = client
        self._folders = folders
        self._roles: dict[RoleName, _LoadedRole] = {}

    async def load(self) -> None:
        """Loads the roles, each with a token as proof. One that vLLM does not take is left out.

        Raises:
            VllmUnreachable: vLLM does not answer.
        """
        self._roles.clear()
        for role in self.main_brain.side_roles:
            try:
                adapter = await self._folders.load_role(role)
                await self._read_token(adapter)
            except (AdapterCorrupt, AdapterIncompatible) as error:
                self.give_up(role.manifest.role, str(error))
            except VllmRefused as error:
                # A vLLM server whose engine died refuses everything: this raises if so.
                await self._client.query_served_model()
                self.give_up(role.manifest.role, f"vLLM fails with it (HTTP status {error.status})")
            else:
                self._roles[role.manifest.role] = _LoadedRole(adapter=adapter)

    def adapter(self, role: RoleName | None) -> VllmAdapter | None:
        """Returns a role's adapter, or None if vLLM does not have it."""
        loaded_role = self._roles.get(role) if role is not None else None
        return loaded_role.adapter if loaded_role else None

    def give_up(self, role: RoleName, why: str) -> str:
        """Leaves a role out from now on. Returns the reason, which is also among the Main Brain's problems."""
        reason = f"the {role} can't be used: {why}"
        if role in {side_role.manifest.role for side_role in self.main_brain.side_roles}:
            _log.warning("role_unusable", role=role, base_model=self.main_brain.name, reason=reason)
            self.main_brain = self.main_brain.without(role, reason)
        self._roles.pop(role, None)
        return reason

    def record_use(self, adapter: VllmAdapter) -> None:
        """Notes that vLLM is asked to decode with an adapter, and has roles read a token that it might displace."""
        for role in self._roles.values():
            if role.adapter is adapter:
                role.others.clear()
                continue
            role.others.add(adapter.name)
            if len(role.others) >= _MAX_OTHERS and role.reading is None:
                role.others.clear()
                role.reading = asyncio.create_task(self._keep(role), name="keep a role in vLLM's memory")

    async def aclose(self) -> None:
        """Ends what reads tokens."""
        tasks = [role.reading for role in self._roles.values() if role.reading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, role: _LoadedRole) -> None:
        try:
            await self._read_token(role.adapter)
        except (VllmRefused, VllmUnreachable):
            # It is loaded again when it is needed, as after a restart of vLLM.
            pass
        finally:
            role.reading = None

    async def _read_token(self, adapter: VllmAdapter) -> None:
        await self._client.next_logs(adapter.name, [_PROBE], _PROBE)
