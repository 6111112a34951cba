"""What the commands of `aivo safety` do: call, and print what comes back.

Each returns the exit status, and raises the `AivoError` of the call if it fails. Knows nothing of the command line.
"""

from aivo.safety.v1.safety_pb2 import SafetyAction, SafetyCategory
from aivo.safety.v1.safety_service_pb2 import (
    AcknowledgeAlertRequest,
    CheckTextRequest,
    CheckTextResponse,
    ListAlertsRequest,
    ListAlertsResponse,
    SafetyAlert,
    WatchAlertsRequest,
)
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.commands import DONE
from client.display import print_json
from client.safety import SafetyClient

_out = Console(highlight=False, markup=False, soft_wrap=True)


async def check_text(address: str, request: CheckTextRequest, *, as_json: bool) -> int:
    """Prints what is thought of a text."""
    async with SafetyClient(address) as safety:
        checked = await safety.check(request)
    if as_json:
        print_json(_out, checked)
        return DONE
    alert = ", adults are told" if checked.alert else ""
    _out.print(f"{_action_name(checked.action)}{alert}; judged by {checked.guard[:17]}", style="bold")
    for line in _category_lines(checked):
        _out.print(line)
    if checked.reply:
        _out.print(checked.reply)
    return DONE


async def list_alerts(address: str, request: ListAlertsRequest, *, as_json: bool) -> int:
    """Prints a page of alerts."""
    async with SafetyClient(address) as safety:
        page = await safety.list_alerts(request)
    if as_json:
        print_json(_out, page)
        return DONE
    _out.print(_alerts_table(page))
    if page.next_page_token:
        _out.print(f"next page: --page-token {page.next_page_token}")
    return DONE


async def watch_alerts(address: str, request: WatchAlertsRequest, *, as_json: bool) -> int:
    """Prints alerts as they change, until it is interrupted."""
    async with SafetyClient(address) as safety:
        async for message in safety.watch(request):
            if as_json:
                print_json(_out, message, indent=None)
            elif not message.heartbeat:
                _out.print(" · ".join(_cells(message.alert)))
    return DONE


async def acknowledge_alert(address: str, request: AcknowledgeAlertRequest, *, as_json: bool) -> int:
    """Acknowledges an alert."""
    async with SafetyClient(address) as safety:
        answer = await safety.acknowledge(request)
    if as_json:
        print_json(_out, answer)
    else:
        _out.print(" · ".join(_cells(answer.alert)))
    return DONE


def _alerts_table(page: ListAlertsResponse) -> Table:
    table = Table("alert", "student", "about", "action", "texts", "updated", "acknowledged")
    for alert in page.alerts:
        table.add_row(*map(Text, _cells(alert)))
    return table


def _cells(alert: SafetyAlert) -> tuple[str, ...]:
    acknowledged = alert.acknowledge_time.ToJsonString() if alert.HasField("acknowledge_time") else "no"
    return (
        alert.alert_id,
        alert.student_id or "no student",
        ", ".join(_category_name(part.category) for part in alert.categories),
        _action_name(alert.action),
        str(alert.count),
        alert.update_time.ToJsonString(),
        f"{acknowledged} {alert.acknowledged_by}".strip(),
    )


def _category_lines(checked: CheckTextResponse) -> list[str]:
    likeliest_first = sorted(checked.categories, key=lambda part: part.probability, reverse=True)
    return [f"{_category_name(part.category)}: {part.probability:.3f}" for part in likeliest_first]


def _category_name(category: SafetyCategory.ValueType) -> str:
    return SafetyCategory.Name(category).removeprefix("SAFETY_CATEGORY_").lower().replace("_", " ")


def _action_name(action: SafetyAction.ValueType) -> str:
    return SafetyAction.Name(action).removeprefix("SAFETY_ACTION_").lower()
