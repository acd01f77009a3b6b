"""The operator's pages: they show public values only, nothing without a session, and every form names its actor."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.console_session import Console
from kit.hospital import CANARY, PLAN, Hospital, approved, ask, await_that, make_hospital
from kit.hostile_table import Answered

from connector.console.log_in_delays import FIRST_S, FREE, LONGEST_S, REMEMBERED_S, WAITING, LogInDelays
from connector.console.page_frame import _NAV
from connector.governance.operator_accounts import INVITATION_MINUTES, INVITATIONS, Accounts, Actor
from connector.listeners.internal import internal_app
from connector.supernode import SuperNode
from vht_federate.errors import RefusedError, UnavailableError
from vht_federate.testing.asgi import AppClient
from vht_federate.testing.clock import FixedClock

DIGEST = "ab" * 32
PAGES = tuple(path for path, _ in _NAV)  # all that the console's menu leads to


@pytest.fixture
def console(stocked: Hospital) -> Iterator[Console]:
    with stocked.open() as node:
        yield Console(node, stocked)


def test_without_a_session_every_page_leads_to_the_log_in(console: Console) -> None:
    for path in (*PAGES, "/visits/v-1"):
        answer = console.browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "Password" in console.browser.get("/login").text


def test_a_wrong_password_and_an_unknown_name_are_told_the_same(console: Console) -> None:
    wrong, unknown = console.log_in(password="wrong horse!"), console.log_in(name="Nobody", password="wrong horse!")
    assert wrong.status_code == unknown.status_code == 403
    assert wrong.text == unknown.text
    assert "set-cookie" not in wrong.headers


@pytest.mark.hostile("passwords")
def test_wrong_passwords_make_the_next_attempt_wait_and_lock_nobody_out(console: Console, answered: Answered) -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    console.browser = AppClient(internal_app(console.node, delays=LogInDelays(pause)))
    for _ in range(20):
        assert console.log_in(password="wrong horse!").status_code == 403
    assert waited[: FREE + 3] == [0.0] * FREE + [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert max(waited) == LONGEST_S
    assert console.log_in().status_code == 303  # which failed for five minutes after five wrong passwords
    assert waited[-1] == LONGEST_S
    assert console.log_in("Vera", "battery staple").status_code == 303
    console.log_in()
    assert waited[-1] <= FIRST_S  # the right password ended its own delay; what is left is of the address
    answered(f"up to {LONGEST_S:g} s between guesses; the operator enters")


@pytest.mark.hostile("passwords", control=True)
def test_control_without_delays_guesses_cost_nothing(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("connector.console.log_in_delays.FREE", 10_000)
    console.browser = AppClient(internal_app(console.node, delays=LogInDelays(pause)))
    for _ in range(20):
        assert console.log_in(password="wrong horse!").status_code == 403
    assert waited == [0.0] * 20


def test_delays_are_of_an_account_at_an_address_and_pass() -> None:
    now = [0.0]
    delays = LogInDelays(timer=lambda: now[0])
    for _ in range(10):
        delays.failed("Ada", "10.0.0.1")
    assert delays.seconds("Ada", "10.0.0.1") == LONGEST_S
    assert delays.seconds("Ada", "10.0.0.2") == delays.seconds("Vera", "10.0.0.1") == 0.0
    for number in range(100):
        delays.failed(f"name {number}", "10.0.0.1")
    assert delays.seconds("Vera", "10.0.0.1") > 0.0
    now[0] = REMEMBERED_S + 1
    assert delays.seconds("Ada", "10.0.0.1") == 0.0


def test_attempts_that_wait_are_bounded_and_hold_no_thread() -> None:
    async def attempts() -> list[str]:
        released = asyncio.Event()

        async def pause(_: float) -> None:
            await released.wait()

        delays, codes = LogInDelays(pause), []

        async def attempt() -> None:
            try:
                async with delays.attempt("Ada", "10.0.0.1"):
                    codes.append("judged")
            except UnavailableError as error:
                codes.append(error.code)

        tasks = [asyncio.create_task(attempt()) for _ in range(WAITING + 5)]
        await asyncio.sleep(0)
        released.set()
        await asyncio.gather(*tasks)
        return codes

    codes = asyncio.run(attempts())
    assert (codes.count("judged"), codes.count("VHT-UNAVAILABLE-LOGIN")) == (WAITING, 5)


def test_the_cookie_is_strict_and_the_session_ends_with_the_log_out(console: Console) -> None:
    cookie = console.log_in().headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=strict", "vht-node-hospital-1="))
    assert console.browser.get("/").status_code == 200
    cookies = dict(console.browser.cookies)
    console.browser.post("/logout", data={"form_key": console.form_key()})
    assert (
        console.browser.get("/", headers={"Cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())}).status_code
        == 303
    )


def test_an_operator_decides_in_the_console_and_the_log_names_them(console: Console) -> None:
    visit = ask(console.node, console.hospital).id
    console.log_in()
    page = console.browser.get("/")
    assert "A study" in page.text
    assert page.headers["refresh"] == "10"
    answer = console.browser.post(f"/visits/{visit}/approve", data={"form_key": console.form_key()})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/visits/{visit}")
    await_that(lambda: console.node.visits.get(visit).state == "ready")
    console.node.gate.begin(visit, "train", 1, DIGEST)
    console.node.gate.release(visit, "train", 1, DIGEST, 4321)
    visit_page = console.browser.get(f"/visits/{visit}").text
    assert all(word in visit_page for word in ("Stop this visit now", "4,321", DIGEST[:16], "Dr Ada", "permit-1"))
    console.browser.post(f"/visits/{visit}/stop", data={"form_key": console.form_key(), "reason": "a repair"})
    ended_page = console.browser.get(f"/visits/{visit}").text
    assert all(word in ended_page for word in ("VHT-REFUSED-STOPPED", "halted", "stopped by the operator: a repair"))
    again = console.browser.post(f"/visits/{visit}/approve", data={"form_key": console.form_key()})
    assert (again.status_code, "ended as halted" in again.text) == (403, True)
    operators = [
        entry["body"].get("operator") for entry in console.hospital.log() if entry["kind"].startswith("visit.")
    ]
    assert operators == [None, "Dr Ada", "Dr Ada"]


def test_a_form_without_the_sessions_key_or_from_a_viewer_changes_nothing(console: Console) -> None:
    visit = ask(console.node, console.hospital).id
    console.log_in()
    for key in ("", "guess"):
        answer = console.browser.post(f"/visits/{visit}/approve", data={"form_key": key})
        assert answer.status_code == 403
        assert "VHT-REFUSED-FORM" in answer.text
    by_api = console.browser.post(f"/api/visits/{visit}/approve", json={})  # a cookie is not enough for the API
    assert by_api.status_code == 403
    console.log_in("Vera", "battery staple")
    page = console.browser.get(f"/visits/{visit}").text
    assert "Approve" not in page
    answer = console.browser.post(f"/visits/{visit}/approve", data={"form_key": console.form_key()})
    assert "VHT-REFUSED-ROLE" in answer.text
    assert console.node.visits.get(visit).state == "requested"


def test_a_link_logs_in_once_and_the_operator_token_itself_never_by_an_address(console: Console) -> None:
    token = (console.hospital.state / "operator.token").read_text().strip()
    for wrong in ("/login?code=wrong", f"/login?code={token}"):
        assert console.browser.get(wrong).status_code == 403
    assert console.browser.get(f"/login?token={token}").status_code == 200  # the empty form, nobody logged in
    assert console.browser.post("/api/log-in-links", json={}).status_code == 403
    link = console.browser.post("/api/log-in-links", json={}, headers={"Authorization": f"Bearer {token}"}).json()
    place = link["url"].removeprefix(console.node.settings.internal_url)
    assert (console.browser.request("HEAD", place).status_code, dict(console.browser.cookies)) == (200, {})
    entered = console.browser.get(place)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert (entered.headers["referrer-policy"], entered.headers["cache-control"]) == ("no-referrer", "no-store")
    assert console.browser.get("/").status_code == 200
    assert console.browser.get(place).status_code == 403  # used up


def test_links_end_with_their_time_and_are_few(console: Console) -> None:
    clock, operator = FixedClock(), Actor("Olga", "approver", "operator-token")
    accounts = Accounts(console.node.database, "token", clock)
    first = accounts.invite(operator)
    for _ in range(INVITATIONS):
        last = accounts.invite(operator)
    for code in (first, ""):
        with pytest.raises(RefusedError):
            accounts.log_in_with_code(code)
    late = accounts.invite(operator)
    assert accounts.log_in_with_code(last)[1].actor == operator
    clock.advance(60 * INVITATION_MINUTES)
    with pytest.raises(RefusedError):
        accounts.log_in_with_code(late)


def test_every_page_in_every_state_renders_without_a_value_of_a_patient(console: Console) -> None:
    node, hospital = console.node, console.hospital
    console.log_in()
    empty = [console.browser.get(path) for path in PAGES]
    visits = [ask(node, hospital, study=hospital.study(study_id=f"study-{n}")).id for n in range(5)]
    approved(node, visits[1])
    node.gate.begin(visits[1], "train", 1, DIGEST)
    node.gate.release(visits[1], "train", 1, DIGEST, 10)
    approved(node, visits[2])
    for job, number in PLAN.calls():
        node.gate.begin(visits[2], job, number, DIGEST)
        node.gate.release(visits[2], job, number, DIGEST, 10)
    node.visits.end(visits[2], "closed", code=None, reason="done")
    node.gate.refused(visits[1], "<script>alert(1)</script>", -5, "VHT-REFUSED-UNPLANNED")
    answers = [*empty, *(console.browser.get(path) for path in PAGES)]
    answers += [console.browser.get(f"/visits/{visit}") for visit in visits]
    answers += [console.browser.get("/log?before=5"), console.browser.get("/log?before=0")]
    for answer in answers:
        assert answer.status_code == 200
        assert "text/html" in answer.headers["content-type"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert CANARY not in answer.text
        assert "Undefined" not in answer.text
        assert "<script" not in answer.text
        for value in ("110.5", "p17", "1957-05-17"):
            assert value not in answer.text
    assert "Risk &lt;b&gt;models" in answers[-3].text  # words out of a permit are shown, never rendered
    missing = console.browser.get("/visits/v-0")
    assert (missing.status_code, "no such visit" in missing.text) == (404, True)


def test_the_first_page_says_whether_the_coordinator_let_the_node_in(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path, coordinator={"address": "127.0.0.1:9", "ca": "/ca.crt", "supernode_port": 9999})
    with hospital.open(start=False) as node:
        assert node.settings.coordinator is not None
        console = Console(node, hospital)
        (tmp_path / "run").mkdir()
        node.supernode = SuperNode(node.settings.coordinator, node.files, tmp_path / "run")  # known, and not started
        console.log_in()
        assert '<span class="badge bad">connecting</span>' in console.browser.get("/").text
        refusal = "Failed to initialize the connection to the SuperLink.\n[code: 20] not registered\n"
        node.files.supernode_log.write_text(refusal)
        page = console.browser.get("/").text
        assert '<span class="badge bad">refused</span>' in page
        assert "[code: 20] not registered" in page
    hospital.issuer.stop()


def test_refused_studies_are_shown_with_their_code(console: Console) -> None:
    with pytest.raises(Exception, match="not signed"):
        ask(console.node, console.hospital, permit=console.hospital.permit()[:-8] + "AAAAAAAA")
    console.log_in()
    assert "VHT-PERMIT-SIGNATURE" in console.browser.get("/").text
