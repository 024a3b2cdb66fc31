"""Daemons that stop, are killed and start again: nothing is doubled, and a kill loses at most a minute."""

import time
from decimal import Decimal

from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.gateway.bursts import Arrival
from envoy2emon.emoncms.courier import Courier
from envoy2emon.emoncms.dates import ByAge
from envoy2emon.emoncms.delivery import Delivery
from envoy2emon.emoncms.client import EmonCMS
from envoy2emon.rows import Selection
from envoy2emon.gateway.readings import parse_event
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.emoncms.spool import Spool
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from envoy2emon.stream import Stream
from tests.conftest import StartDaemon
from tests.meter import AWAY, QUICK, Meter, held, restart, stream


def test_sigterm_loses_nothing(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """What waits at SIGTERM, what came a moment before, arrives after the next start, and the file goes."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(40)
    held(one, 40)
    for _ in range(2):
        restart(one, envoy)
        assert all(path.name.startswith("stream.sqlite") for path in one.state.iterdir())  # its journal too
        assert (one.state / "stream.sqlite").exists()
        one.wait_for_line(r"INFO \d+ rows of an earlier run wait to be delivered")
        meter.send(10)
        held(one, len(meter.sent))
    meter.emoncms.fault = None
    meter.all_arrived()
    assert one.terminate()[0] == 0
    assert list(one.state.iterdir()) == []


def test_what_is_held_at_sigterm_is_kept() -> None:
    """Readings that wait to be dated, since more may follow on their heels, become rows when the process ends."""
    backlog = Backlog(100, Spool(None, "boot", lambda: 0.0), lambda: 50.0)
    selection = Selection(("prod",), ("ph-a",), ("wNow",), Decimal(0), net_calculated=False)
    away = EmonCMS("http://127.0.0.1:9/emoncms", None)
    courier = Courier(backlog, Delivery(backlog, away, ByAge(), lambda: 50.0, lambda: 0.0), lambda: 50.0)
    main = Stream("Envoy-S", selection, courier, None, lambda _: None, lambda: 50.0)
    main.take(Arrival(50.0, tuple(parse_event(THREE_PHASE_EVENT, 50.0) for _ in range(3))))
    assert len(backlog) == 0
    main.close()
    assert [row.at for row in backlog] == [48.0, 49.0, 50.0]


def test_a_post_under_way_at_sigterm_is_not_doubled(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """EmonCMS applied the rows and is silent: the next run asks, and goes on after them."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    held(one, 30)
    meter.emoncms.fault = None
    meter.emoncms.fail_next(Fault("hang", applied=None))
    meter.wait_for(30)
    restart(one, envoy)
    meter.emoncms.release()
    meter.send(3)
    meter.all_arrived()


def test_a_kill_in_the_middle_of_delivering_doubles_nothing(
    daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter
) -> None:
    """SIGKILL with a part of the backlog delivered and a post unanswered: nothing is lost, nothing comes twice."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(250, 0.003)
    held(one, 250)
    restart(one, envoy)  # by SIGTERM: all is on disk
    meter.emoncms.fail_next(AWAY, Fault("hang", applied=None))
    meter.emoncms.fault = None
    meter.wait_for(100)
    restart(one, envoy, kill=True)
    meter.emoncms.release()
    meter.send(3)
    meter.all_arrived()


def test_a_kill_costs_at_most_a_minute(daemon: StartDaemon, envoy: SimulatedEnvoy, meter: Meter) -> None:
    """What was saved before a SIGKILL arrives; what is younger than a minute may be lost, and nothing else."""
    meter.emoncms.fault = AWAY
    one = stream(daemon, envoy)
    meter.send(30)
    held(one, 30)
    restart(one, envoy)
    meter.send(10)
    held(one, 40)
    restart(one, envoy, kill=True)
    meter.emoncms.fault = None
    meter.send(5)
    meter.wait_for(35)
    assert set(range(1, 41)) - set(meter.arrived()) <= set(range(31, 41))


def test_reports_survive_outage_and_restart(
    daemon: StartDaemon, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS
) -> None:
    """Each changed report arrives with its own date, though EmonCMS is away and the daemon is restarted and killed."""
    now = int(time.time())
    reports = {str(serial): [now - 900, serial, 295] for serial in range(1001, 1005)}
    expected: set[tuple[str, int, int]] = set()

    def publish() -> None:
        envoy.inverters = [
            {"serialNumber": serial, "lastReportDate": date, "lastReportWatts": watts, "maxReportWatts": most}
            for serial, (date, watts, most) in reports.items()
        ]
        expected.update((serial, date, watts) for serial, (date, watts, _) in reports.items())

    def change(serial: str) -> None:
        reports[serial][0] += 100
        reports[serial][1] += 1
        publish()

    def arrived() -> list[tuple[str, int, int]]:
        return [
            (name.removesuffix("_wNow"), row.time, int(value))
            for row in list(emoncms.rows)
            for name, value in row.inputs.items()
            if name.endswith("_wNow")
        ]

    publish()
    emoncms.fault = AWAY
    one = daemon("inverters", QUICK, INVERTERS_INTERVAL_S=1)
    held(one, 4)
    change("1002")
    held(one, 5)
    assert one.terminate()[0] == 0
    change("1003")
    one.start()
    held(one, 6)
    emoncms.fault = None
    emoncms.fail_next(Fault("cut", applied=3))
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    one.kill()
    change("1001")
    one.start()
    emoncms.wait_for(lambda: expected <= set(arrived()), 20)
    dates = dict.fromkeys(reports, 0)
    for serial, date, _ in arrived():
        assert date >= dates[serial]
        dates[serial] = date
