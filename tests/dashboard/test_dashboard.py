"""The dashboard in a real Chromium, against the demo server and against a scripted wire."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

if TYPE_CHECKING:
    from tests.dashboard.conftest import DemoServer, Frame, OpenPage, Seen, StartServer, Wire

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"window.harmed='yes'\"><script>window.harmed='yes'</script>"


def state(page: Page) -> Locator:
    return page.get_by_test_id("connection-state")


def expect_live(page: Page) -> None:
    expect(state(page)).to_have_attribute("data-state", "live")


def jobs(page: Page) -> Locator:
    return page.get_by_test_id("job-row")


def job(page: Page, job_id: str) -> Locator:
    return page.locator(f'[data-testid=job-row][data-job-id="{job_id}"]')


def events(page: Page) -> Locator:
    return page.get_by_test_id("event-log-row")


def submitted(job_id: str, job_type: str = "comfyui", priority: int = 5) -> Frame:
    data = {"id": job_id, "job_type": job_type, "status": "pending", "priority": priority}
    return {"type": "job_submitted", "job_id": job_id, "job_data": {**data, "created_at": 1}}


def assigned(job_id: str, worker_id: str = "worker-1") -> Frame:
    return {
        "type": "job_assigned",
        "job_id": job_id,
        "worker_id": worker_id,
        "old_status": "pending",
        "new_status": "assigned",
        "assigned_at": 2,
    }


def progress(job_id: str, value: float, message: str = "") -> Frame:
    return {
        "type": "update_job_progress",
        "job_id": job_id,
        "worker_id": "worker-1",
        "progress": value,
        "message": message,
    }


def completed(job_id: str, result: Any = "done") -> Frame:
    return {
        "type": "complete_job",
        "job_id": job_id,
        "worker_id": "worker-1",
        "result": result,
        "completed_at": 3,
    }


def failed(job_id: str, error: str) -> Frame:
    return {"type": "job_failed", "job_id": job_id, "error": error, "failed_at": 3}


def worker(worker_id: str) -> Frame:
    data = {
        "id": worker_id,
        "status": "idle",
        "capabilities": {"gpu_count": 1, "gpu_model": "RTX 4090", "gpu_memory_gb": 24},
        "connected_at": 1,
        "jobs_completed": 0,
        "jobs_failed": 0,
    }
    return {
        "type": "worker_connected",
        "worker_id": worker_id,
        "machine_id": "machine-1",
        "worker_data": data,
    }


class TestAgainstTheDemoServer:
    def test_loads_cleanly_and_stays_at_home(
        self, dashboard_server: DemoServer, open_page: OpenPage, seen: Seen
    ) -> None:
        page = open_page(dashboard_server.url)
        expect_live(page)
        expect(events(page).first).to_be_visible()
        assert seen.console_errors == []
        home = urlsplit(dashboard_server.url).netloc
        assert {urlsplit(address).netloc for address in seen.addresses} == {home}

    def test_shows_jobs_with_progress_and_outcomes(
        self, dashboard_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(dashboard_server.url)
        running = page.locator("[data-testid=job-row][data-status=in_progress]")
        bar = running.get_by_role("progressbar")
        expect(bar.first).to_have_attribute("aria-valuenow", re.compile("^[1-9]"), timeout=60_000)
        done = page.locator("[data-testid=job-row][data-status=completed]")
        expect(done.first).to_be_visible(timeout=60_000)

    def test_shows_workers_and_machines(
        self, dashboard_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(dashboard_server.url)
        expect(page.get_by_test_id("worker-row").first).to_be_visible()
        expect(page.get_by_test_id("machine-row").first).to_be_visible()
        busy = page.locator("[data-testid=worker-row][data-state=busy]")
        expect(busy.first).to_be_visible(timeout=60_000)

    def test_plots_the_rate_of_events(
        self, dashboard_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(dashboard_server.url)
        plot = page.get_by_test_id("rate-plot")
        expect(plot).to_have_attribute("aria-label", re.compile("[1-9]\\d* at most"))

    def test_a_submitted_job_is_followed_to_its_outcome(
        self, quiet_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(quiet_server.url)
        expect_live(page)
        page.get_by_label("Job type").fill("comfyui")
        page.get_by_label("Payload").fill('{"seconds": 0.4}')
        page.get_by_test_id("client-submit").click()
        followed = page.get_by_test_id("followed-job")
        expect(followed).to_have_count(1)
        expect(followed).to_have_attribute("data-status", "completed")
        frames = page.get_by_test_id("client-frames")
        expect(frames).to_contain_text('"type":"job_accepted"')
        expect(frames).to_contain_text('"type":"complete_job"')
        job_id = followed.get_attribute("data-job-id")
        assert job_id is not None
        page.get_by_test_id("job-filter").fill(job_id)
        expect(job(page, job_id)).to_have_attribute("data-status", "completed")

    def test_a_job_that_fails_says_why_as_text(
        self, quiet_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(quiet_server.url)
        expect_live(page)
        page.get_by_label("Job type").fill(HOSTILE)
        page.get_by_label("Payload").fill(json.dumps({"seconds": 0.2, "error": HOSTILE}))
        page.get_by_test_id("client-submit").click()
        followed = page.get_by_test_id("followed-job")
        expect(followed).to_have_attribute("data-status", "failed")
        expect(followed.locator(".outcome")).to_have_text(HOSTILE)
        page.get_by_test_id("job-status").select_option("failed")
        expect(jobs(page).filter(has_text=HOSTILE)).to_have_attribute("data-status", "failed")
        assert page.evaluate("window.harmed") is None

    def test_a_job_is_cancelled(self, quiet_server: DemoServer, open_page: OpenPage) -> None:
        page = open_page(quiet_server.url)
        expect_live(page)
        page.get_by_label("Job type").fill("comfyui")
        page.get_by_label("Payload").fill('{"seconds": 300}')
        page.get_by_test_id("client-submit").click()
        page.get_by_role("button", name=re.compile("^Cancel job")).click()
        expect(page.get_by_test_id("followed-job")).to_have_attribute("data-status", "cancelled")

    def test_a_server_with_a_token_lets_in_who_has_it(
        self, start_server: StartServer, open_page: OpenPage
    ) -> None:
        server = start_server("--token", "open/sesame+1")
        page = open_page(server.url)
        field = page.locator("#token")
        expect(field).to_be_visible()
        field.fill("open/sesame+1")
        field.press("Enter")
        expect_live(page)
        page = open_page(server.url + "#token=open/sesame+1")
        expect_live(page)
        assert page.url == server.url
        page.get_by_label("Job type").fill("comfyui")
        page.get_by_test_id("client-submit").click()
        expect(page.get_by_test_id("followed-job")).to_have_count(1)

    def test_a_job_is_submitted_by_keyboard_alone(
        self, quiet_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(quiet_server.url)
        expect_live(page)
        tab_to(page, "client-type")
        page.keyboard.type("comfyui")
        tab_to(page, "client-submit")
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("followed-job")).to_have_count(1)

    def test_comes_back_after_the_server_restarted(
        self, start_server: StartServer, open_page: OpenPage
    ) -> None:
        server = start_server()
        page = open_page(server.url)
        expect_live(page)
        expect(jobs(page).first).to_be_visible()
        server.stop()
        expect(state(page)).not_to_have_attribute("data-state", "live")
        expect(state(page)).to_have_text("Reconnecting")
        server.start()
        expect(state(page)).to_have_attribute("data-state", "live", timeout=60_000)
        # The new process has a history of its own: the old state is replaced, not continued.
        expect(events(page).filter(has_text="resync_required")).to_have_count(1)
        expect(page.get_by_test_id("worker-row").first).to_be_visible()
        expect(jobs(page).first).to_be_visible()
        fresh = page.locator("[data-testid=job-row][data-status=in_progress]")
        expect(fresh.first).to_be_visible(timeout=60_000)

    def test_a_phone_needs_no_sideways_scrolling(
        self, dashboard_server: DemoServer, open_page: OpenPage
    ) -> None:
        page = open_page(dashboard_server.url, viewport={"width": 360, "height": 740})
        expect_live(page)
        expect(jobs(page).first).to_be_visible()
        expect(events(page).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        expect(page.get_by_test_id("client-submit")).to_be_enabled()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_from_its_background(
        self, dashboard_server: DemoServer, open_page: OpenPage, scheme: str
    ) -> None:
        page = open_page(dashboard_server.url, color_scheme=scheme, reduced_motion="reduce")
        expect_live(page)
        expect(page.locator("[data-testid=job-row] .status").first).to_be_visible()
        expect(page.get_by_test_id("worker-row").first).to_be_visible()
        measured = page.evaluate(CONTRAST)
        assert measured["texts"] > 30
        assert measured["faint"] == []  # WCAG AA: 4.5:1, 3:1 for large text


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this id or test id has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(
            "n => [document.activeElement.id, document.activeElement.dataset.testid].includes(n)",
            name,
        ):
            return
    pytest.fail(f"80 Tabs did not reach {name}")


CONTRAST = """() => {
  const parse = css => css.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
  };
  const faint = []; let texts = 0;
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim());
    if (!own || !node.checkVisibility() || node.closest(".unseen, .skip, script")) continue;
    const style = getComputedStyle(node), a = light(parse(style.color)), b = light(behind(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts++;
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5))
      faint.push(`${node.className || node.tagName}: ${ratio.toFixed(2)}`);
  }
  return { faint, texts };
}"""


class TestJobs:
    def test_asks_for_the_full_state_and_shows_it(self, wire: Wire) -> None:
        wire.snapshot["jobs"] = {
            "pending": [{"id": "job-p", "job_type": "embed", "status": "pending", "priority": 1}],
            "active": [{"id": "job-a", "status": "in_progress", "progress": 0.25}],
            "completed": [{"id": "job-c", "status": "completed", "result": {"url": "a/b"}}],
            "failed": [{"id": "job-f", "status": "failed", "error": "out of memory"}],
        }
        wire.snapshot["workers"] = {"worker-1": {"id": "worker-1", "status": "busy"}}
        wire.snapshot["machines"] = {"machine-1": {"id": "machine-1", "phase": "ready"}}
        wire.open()
        page = wire.page
        expect(jobs(page)).to_have_count(4)
        expect(job(page, "job-p")).to_have_attribute("data-status", "pending")
        expect(job(page, "job-a").get_by_role("progressbar")).to_have_attribute(
            "aria-valuenow", "25"
        )
        expect(job(page, "job-c")).to_contain_text("url a/b")
        expect(job(page, "job-f")).to_contain_text("out of memory")
        expect(page.get_by_test_id("worker-row")).to_have_attribute("data-state", "busy")
        expect(page.get_by_test_id("machine-row")).to_have_attribute("data-state", "ready")
        assert wire.asked == [{"type": "request_full_state"}]

    def test_follows_a_job_from_submission_to_outcome(self, wire: Wire) -> None:
        wire.go_live()
        row = job(wire.page, "job-1")
        bar = row.get_by_role("progressbar")
        wire.broadcast(submitted("job-1"))
        expect(row).to_have_attribute("data-status", "pending")
        wire.broadcast(assigned("job-1"))
        expect(row).to_have_attribute("data-status", "assigned")
        wire.broadcast(progress("job-1", 0.45, "sampling"))
        expect(bar).to_have_attribute("aria-valuenow", "45")
        expect(row).to_contain_text("sampling")
        wire.broadcast(completed("job-1", {"seed": 20719}))
        expect(row).to_have_attribute("data-status", "completed")
        expect(row).to_contain_text("seed 20719")
        wire.broadcast(progress("job-1", 0.5), failed("job-1", "a late second outcome"))
        expect(events(wire.page).filter(has_text="job_failed")).to_have_count(1)
        expect(row).to_have_attribute("data-status", "completed")
        wire.broadcast(submitted("job-1"))
        expect(row).to_have_attribute("data-status", "pending")

    def test_totals_follow_the_events_and_yield_to_system_stats(self, wire: Wire) -> None:
        wire.go_live()
        figure = wire.page.locator("[data-figure=pending_jobs] dd")
        wire.broadcast(submitted("job-1"), submitted("job-2"), submitted("job-3"))
        wire.broadcast(failed("job-3", "no worker can"))
        expect(figure).to_have_text("2")
        wire.broadcast({"type": "system_stats", "stats": {"pending_jobs": 41}})
        expect(figure).to_have_text("41")
        wire.broadcast(submitted("job-4"))
        expect(figure).to_have_text("42")

    def test_filters_by_text_and_status(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(submitted("job-1", "embed"), submitted("job-2", "upscale"))
        wire.broadcast(submitted("job-3", "upscale"), failed("job-3", "moov atom not found"))
        expect(jobs(wire.page)).to_have_count(3)
        wire.page.get_by_test_id("job-filter").fill("UPSCALE")
        expect(jobs(wire.page)).to_have_count(2)
        wire.page.get_by_test_id("job-status").select_option("failed")
        expect(jobs(wire.page)).to_have_count(1)
        wire.page.get_by_test_id("job-filter").fill("nothing like it")
        expect(jobs(wire.page)).to_have_count(0)
        expect(wire.page.get_by_text("No job matches this filter")).to_be_visible()

    def test_text_from_the_wire_is_shown_as_text(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(worker(HOSTILE), submitted(HOSTILE, HOSTILE), assigned(HOSTILE, HOSTILE))
        wire.broadcast({"type": "machine_startup", "machine_id": HOSTILE, "phase": HOSTILE})
        wire.broadcast({"type": HOSTILE, "job_id": HOSTILE, "step": {"name": HOSTILE}})
        wire.broadcast(submitted("__proto__"), submitted("constructor"), failed("__proto__", "x"))
        wire.broadcast(failed(HOSTILE, HOSTILE))
        page = wire.page
        expect(jobs(page)).to_have_count(3)
        row = jobs(page).filter(has_text="<img src=x")
        expect(row).to_have_attribute("data-status", "failed")
        expect(row.locator(".outcome")).to_have_text(HOSTILE)
        row.locator("button.id").click()
        expect(row.locator("pre")).to_contain_text("<script>")
        expect(page.get_by_test_id("worker-row")).to_contain_text("<img src=x")
        expect(page.get_by_test_id("machine-row")).to_contain_text("<img src=x")
        expect(events(page).filter(has_text="step {…}")).to_have_count(1)
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert page.evaluate("window.harmed") is None

    def test_keeps_a_bounded_number_of_finished_jobs(self, wire: Wire) -> None:
        wire.go_live()
        for i in range(700):
            wire.broadcast(submitted(f"job-{i}"), completed(f"job-{i}"))
        expect(job(wire.page, "job-699")).to_have_attribute("data-status", "completed")
        expect(wire.page.get_by_text("Finished 500")).to_be_visible()
        assert jobs(wire.page).count() <= 60

    def test_arrow_keys_move_between_jobs_and_enter_opens_one(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(submitted("job-1"), submitted("job-2"))
        expect(jobs(wire.page)).to_have_count(2)
        wire.page.locator("#job-scroll").focus()
        wire.page.keyboard.press("ArrowDown")
        wire.page.keyboard.press("ArrowDown")
        wire.page.keyboard.press("Enter")
        second = job(wire.page, "job-2").locator("button.id")
        expect(second).to_be_focused()
        expect(second).to_have_attribute("aria-expanded", "true")
        wire.broadcast(progress("job-2", 0.5))  # the row moves to another group: focus goes along
        expect(job(wire.page, "job-2")).to_have_attribute("data-status", "in_progress")
        expect(second).to_be_focused()


class TestWorkersAndMachines:
    def test_a_worker_is_idle_busy_and_gone(self, wire: Wire) -> None:
        wire.go_live()
        row = wire.page.get_by_test_id("worker-row")
        wire.broadcast(worker("worker-1"))
        expect(row).to_have_attribute("data-state", "idle")
        expect(row).to_contain_text("RTX 4090, 24 GB")
        change = {"type": "worker_status_changed", "worker_id": "worker-1"}
        wire.broadcast(
            {**change, "old_status": "idle", "new_status": "busy", "current_job_id": "job-9"}
        )
        expect(row).to_have_attribute("data-state", "busy")
        expect(row).to_contain_text("job-9")
        wire.broadcast(
            {"type": "worker_disconnected", "worker_id": "worker-1", "machine_id": "machine-1"}
        )
        expect(row).to_have_attribute("data-state", "offline")

    def test_a_machine_starts_step_by_step(self, wire: Wire) -> None:
        wire.go_live()
        row = wire.page.get_by_test_id("machine-row")
        machine = {"machine_id": "machine-1"}
        host = {"hostname": "gpu-ams-01", "os": "Linux", "cpu_cores": 32, "gpu_count": 2}
        wire.broadcast(
            {"type": "machine_startup", **machine, "phase": "starting", "host_info": host}
        )
        expect(row).to_have_attribute("data-state", "starting")
        expect(row).to_contain_text("gpu-ams-01")
        step = {"step_name": "load_models", "step_phase": "ai_services", "elapsed_ms": 4200}
        wire.broadcast({"type": "machine_startup_step", **machine, **step})
        expect(row).to_contain_text("load models (ai services), 4.2 s")
        wire.broadcast(
            {
                "type": "machine_startup_complete",
                **machine,
                "total_startup_time_ms": 9000,
                "worker_count": 2,
                "services_started": ["comfyui"],
            }
        )
        expect(row).to_have_attribute("data-state", "ready")
        wire.broadcast({"type": "machine_shutdown", **machine, "reason": "spot price"})
        expect(row).to_contain_text("spot price")


class TestEventLog:
    def test_filters_by_text_and_type(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(submitted("job-1"), submitted("job-2"), progress("job-1", 0.5))
        wire.broadcast({"type": "step_submitted", "job_id": "job-2", "step": 4})
        rows = events(wire.page)
        expect(rows.filter(has_text="job_submitted")).to_have_count(2)
        expect(rows.filter(has_text="step_submitted")).to_have_count(1)
        wire.page.get_by_test_id("event-filter").fill("job-2")
        expect(rows).to_have_count(2)
        wire.page.locator("[data-testid=event-type][data-type=step_submitted]").click()
        expect(rows).to_have_count(1)
        wire.page.get_by_test_id("event-filter").fill("")
        quiet = wire.page.locator("[data-testid=event-type][data-type=update_job_progress]")
        expect(quiet).to_have_attribute("aria-pressed", "false")  # it would drown the others
        quiet.click()
        expect(rows.filter(has_text="update_job_progress")).to_have_count(1)

    def test_pauses_and_resumes(self, wire: Wire) -> None:
        wire.go_live()
        pause = wire.page.get_by_test_id("event-pause")
        pause.click()
        wire.broadcast(submitted("job-1"))
        expect(pause).to_have_text("Resume, 1 new")
        expect(events(wire.page).filter(has_text="job-1")).to_have_count(0)
        pause.click()
        expect(events(wire.page).filter(has_text="job-1")).to_have_count(1)

    def test_an_opened_event_shows_its_json_and_stays(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(submitted("job-1", priority=7))
        row = events(wire.page).filter(has_text="job_submitted")
        row.get_by_role("button").click()
        expect(row.locator("pre")).to_contain_text('"priority": 7')
        expect(wire.page.get_by_test_id("event-pause")).to_have_attribute("aria-pressed", "true")


class TestConnection:
    def query(self, wire: Wire) -> dict[str, list[str]]:
        return parse_qs(urlsplit(wire.monitors[-1].url).query)

    def test_resumes_where_it_left_off(self, wire: Wire) -> None:
        wire.go_live()
        assert self.query(wire)["resume"] == ["new"]
        wire.broadcast(submitted("job-1"))
        expect(jobs(wire.page)).to_have_count(1)
        wire.monitors[-1].close(code=1001)
        expect(state(wire.page)).to_have_text("Reconnecting")
        expect_live(wire.page)
        assert self.query(wire)["resume"] == ["epoch:1"]
        expect(jobs(wire.page)).to_have_count(1)
        assert len(wire.asked) == 1

    def test_a_snapshot_after_resync_required_replaces_everything(self, wire: Wire) -> None:
        wire.go_live()
        wire.broadcast(submitted("job-old"), worker("worker-old"))
        expect(jobs(wire.page)).to_have_count(1)
        resync = {"type": "resync_required", "reason": "epoch"}
        wire.broadcast(resync)
        wire.snapshot["jobs"]["pending"] = [{"id": "job-new", "status": "pending"}]
        wire.send_snapshot(wire.monitors[-1])
        expect(job(wire.page, "job-new")).to_be_visible()
        expect(job(wire.page, "job-old")).to_have_count(0)
        expect(wire.page.get_by_test_id("worker-row")).to_have_count(0)

    @pytest.mark.parametrize(
        ("code", "says"),
        [(4401, "expired or was revoked"), (4403, "no longer allowed"), (4409, "took over")],
    )
    def test_a_final_close_says_why_and_offers_a_button(
        self, wire: Wire, code: int, says: str
    ) -> None:
        wire.go_live()
        wire.monitors[-1].close(code=code)
        expect(state(wire.page)).to_have_attribute("data-state", "closed")
        expect(state(wire.page)).to_contain_text(says)
        expect(wire.page.locator("#token-bar")).to_be_visible(visible=code == 4401)
        assert len(wire.monitors) == 1
        wire.page.get_by_role("button", name="Reconnect").click()
        expect_live(wire.page)

    def test_a_token_in_the_address_is_used_and_hidden(self, wire: Wire) -> None:
        wire.go_live("?view=a#token=open+sesame%2F")
        assert "token=open%2Bsesame%2F" in wire.monitors[-1].url
        assert wire.page.url == wire.url + "?view=a"
        wire.page.reload()
        expect_live(wire.page)
        assert "token=open%2Bsesame%2F" in wire.monitors[-1].url  # kept for the tab

    def test_offers_a_token_field_when_refused(self, wire: Wire) -> None:
        wire.token = "sesame"
        wire.open()
        field = wire.page.get_by_label("Access token", exact=True).and_(wire.page.locator("input"))
        expect(field).to_be_visible()
        field.fill("sesame")
        field.press("Enter")
        expect_live(wire.page)
        assert self.query(wire)["token"] == ["sesame"]
        expect(field).to_be_hidden()


class TestClientPane:
    def test_a_bad_payload_is_explained_and_not_sent(self, wire: Wire) -> None:
        wire.open()
        page = wire.page
        page.get_by_test_id("client-submit").click()
        expect(page.get_by_text("Name the job type")).to_be_visible()
        page.get_by_label("Job type").fill("comfyui")
        payload = page.get_by_label("Payload")
        for text, says in [('{"a": ', "not valid JSON"), ("[1]", "must be a JSON object")]:
            payload.fill(text)
            page.get_by_test_id("client-submit").click()
            expect(page.get_by_text(says)).to_be_visible()
            expect(payload).to_be_focused()
            expect(payload).to_have_attribute("aria-invalid", "true")
        page.get_by_label("Priority").fill("high")
        page.get_by_test_id("client-submit").click()
        expect(page.get_by_text("Priority is a whole number")).to_be_visible()
        assert wire.told == []

    def test_submits_and_follows(self, wire: Wire) -> None:
        accepted = {"type": "job_accepted", "job_id": "job-7", "status": "queued"}
        wire.answers["submit_job"] = lambda _: [accepted]
        wire.open()
        page = wire.page
        page.get_by_label("Job type").fill("comfyui")
        page.get_by_label("Priority").fill("9")
        page.get_by_label("Payload").fill('{"steps": 30}')
        page.get_by_test_id("client-submit").click()
        followed = page.get_by_test_id("followed-job")
        expect(followed).to_have_attribute("data-status", "queued")
        command = wire.told[0]
        assert isinstance(command.pop("message_id"), str)
        assert command == {
            "type": "submit_job",
            "job_type": "comfyui",
            "priority": 9,
            "payload": {"steps": 30},
        }
        wire.tell({"type": "update_job_progress", "job_id": "job-7", "progress": 0.5})
        expect(followed.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
        result = {"status": "failed", "error": HOSTILE}
        wire.tell({"type": "complete_job", "job_id": "job-7", "result": result})
        expect(followed).to_have_attribute("data-status", "failed")
        expect(followed).to_contain_text(HOSTILE)
        frames = page.get_by_test_id("client-frames").get_by_role("listitem")
        expect(frames).to_have_count(5)  # greeting, submission, and three about the job

    def test_follows_cancels_and_leaves_an_existing_job(self, wire: Wire) -> None:
        def echo(kind: str, command: Frame) -> Frame:
            return {"type": kind, "job_id": command["job_id"], "message_id": command["message_id"]}

        wire.answers["subscribe_progress"] = lambda c: [echo("subscribed", c)]
        wire.answers["cancel_job"] = lambda c: [echo("job_cancelled", c)]
        wire.answers["unsubscribe_progress"] = lambda c: [echo("unsubscribed", c)]
        wire.open()
        page = wire.page
        page.get_by_label("Or follow a job").fill("job-8")
        page.get_by_test_id("client-subscribe").click()
        followed = page.get_by_test_id("followed-job")
        expect(followed).to_have_attribute("data-job-id", "job-8")
        page.get_by_role("button", name="Cancel job-8").click()
        expect(followed).to_have_attribute("data-status", "cancelled")
        page.get_by_role("button", name="Unsubscribe from job-8").click()
        expect(followed).to_have_count(0)
        assert [c["type"] for c in wire.told] == [
            "subscribe_progress",
            "cancel_job",
            "unsubscribe_progress",
        ]

    def test_an_error_is_shown_and_an_unknown_job_is_not_followed(self, wire: Wire) -> None:
        wire.answers["subscribe_progress"] = lambda c: [
            {
                "type": "error",
                "error": "There is no such job.",
                "code": "not_found",
                "message_id": c["message_id"],
            }
        ]
        wire.open()
        wire.page.get_by_label("Or follow a job").fill("job-9")
        wire.page.get_by_test_id("client-subscribe").click()
        expect(wire.page.get_by_text("There is no such job. (not_found)")).to_be_visible()
        expect(wire.page.get_by_test_id("followed-job")).to_have_count(0)

    def test_follows_again_after_the_connection_was_lost(self, wire: Wire) -> None:
        wire.answers["subscribe_progress"] = lambda c: [
            {"type": "subscribed", "job_id": c["job_id"], "message_id": c["message_id"]},
            {"type": "job_accepted", "job_id": c["job_id"], "status": "queued"},
        ]
        wire.open()
        wire.page.get_by_label("Or follow a job").fill("job-8")
        wire.page.get_by_test_id("client-subscribe").click()
        expect(wire.page.get_by_test_id("followed-job")).to_have_attribute("data-status", "queued")
        wire.clients[-1].close(code=1001)
        client = wire.page.get_by_test_id("client-state")
        expect(client).to_have_text("Reconnecting")
        expect(client).to_have_text("Connected")
        frames = wire.page.get_by_test_id("client-frames").locator("[data-way=sent]")
        expect(frames).to_have_count(2)
        assert [c["job_id"] for c in wire.told] == ["job-8", "job-8"]


class TestTheme:
    def test_follows_the_system_until_chosen(self, wire: Wire) -> None:
        page = wire.page
        page.emulate_media(color_scheme="light")
        wire.open()
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.emulate_media(color_scheme="dark")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        dark = page.evaluate(background)
        assert dark != light
        page.get_by_test_id("theme-toggle").click()
        assert page.evaluate(background) == light
        page.reload()
        assert page.evaluate(background) == light
