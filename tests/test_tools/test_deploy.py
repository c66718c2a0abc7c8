"""deploy/ and the Dockerfile: judged by the programs that read them, and compared with what the code has.

A test whose program is missing is skipped: `make .venv/.installed-tools` brings those of PyPI, .ci/run those of Debian.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.common.settings import Settings
from services.chat.events import Finish, Text
from services.engine.base import EngineStats, Times, UpstreamStats
from services.metrics_service import Metrics
from tests.apps import Site, post
from tools.settings_list import sections

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "parley.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "parley.json"
UNIT = DEPLOY / "systemd" / "parley.service"
KUBERNETES = DEPLOY / "kubernetes"
DRAIN_S = 30.0  # the default of the setting
OF_PROMETHEUS = {"up": {"job"}}
ADDED = {"instance", "job"}  # labels that Prometheus adds itself
COMPUTED = {"le"}


def program(name: str) -> str:
    """Of the virtual environment, or of the system."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(name: str, *arguments: str | Path, **environment: str) -> str:
    command = [program(name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def resources(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def manifests() -> list[dict[str, Any]]:
    """As they stand in the files."""
    return [each for path in sorted(KUBERNETES.glob("*.yaml")) for each in resources(path.read_text("utf-8"))]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (each for each in manifests() if each.get("kind") == kind)
    return found


def container() -> dict[str, Any]:
    found: dict[str, Any] = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


class TestMonitoring:
    def expressions(self) -> list[str]:
        rules = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
        panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
        alerts = [rule["expr"] for group in rules for rule in group["rules"]]
        return alerts + [target["expr"] for panel in panels for target in panel["targets"]]

    def exported(self, page: str) -> dict[str, set[str]]:
        """The labels of each series."""
        found = {name: set(labels) for name, labels in OF_PROMETHEUS.items()}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found

    def complete(self) -> str:
        """With what only some engines have: times, and upstreams."""
        metrics = Metrics()
        metrics.embedded("m", 1)
        timer = metrics.answer("m")
        for event in (Text("a"), Text("b"), Finish("stop", 1, 2, times=Times(0.1, 0.1, 0.1))):
            timer.add(event)
        timer.end()
        upstream = UpstreamStats("gpu", healthy=True)
        metrics.watch(lambda: {"m": EngineStats(upstreams=(upstream,))})
        return metrics.render().decode()

    async def test_all_metrics_and_labels_are_exported(self, site: Site) -> None:
        await post(site, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
        served = self.exported((await site.client.get("/metrics")).text)
        exported = self.exported(self.complete()) | served
        for expression in self.expressions():
            names = re.findall(r"\bparley_\w+|\bup\b", expression)
            assert names, expression
            labels = set(re.findall(r"(\w+) *=~? *\"", expression))
            for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
                labels |= {label.strip() for label in grouped.split(",")}
            for name in names:
                assert name in exported, expression
                assert labels <= exported[name] | ADDED | COMPUTED, (expression, labels)

    def test_dashboard_and_alerts_leave_out_no_metric(self) -> None:
        used = set(re.findall(r"\bparley_\w+", " ".join(self.expressions())))
        exported = {re.sub("_(sum|count|bucket)$", "", name) for name in self.exported(self.complete())}
        assert exported - {re.sub("_bucket$", "", name) for name in used} - {"up"} == set()

    def test_rules(self) -> None:
        run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
        run("promtool", "test", "rules", RULES.with_name("parley.rules.test.yml"))

    def test_every_alert_is_tested(self) -> None:
        alerts = re.findall(r"alert: (\w+)", RULES.read_text("utf-8"))
        tested = RULES.with_name("parley.rules.test.yml").read_text("utf-8")
        assert [name for name in alerts if f'alertname="{name}"' not in tested] == []

    def test_dashboard_is_one_of_grafana(self) -> None:
        """Nothing is unknown to Grafana's own types: what they read they write again."""
        models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
        encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
        given = json.loads(DASHBOARD.read_text("utf-8"))
        read = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(given)))
        assert list(missing(given, read)) == []

    def test_panels_do_not_overlap(self) -> None:
        panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
        places = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels
            for x in range(panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["h"])
        ]
        assert len(places) == len(set(places))
        assert max(x for x, _ in places) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)


def missing(given: Any, read: Any, path: str = "") -> Iterable[str]:
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                yield f"{path}.{key}"
            else:
                yield from missing(value, read[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, pair in enumerate(zip(given, read, strict=True)):
            yield from missing(*pair, f"{path}[{index}]")
    elif given != read:
        yield path


class TestCompose:
    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["parley"]
        return found

    def test_it_is_valid(self) -> None:
        secrets = {"POSTGRES_PASSWORD": "a", "PARLEY_ADMIN_KEY": "b", "GRAFANA_PASSWORD": "c"}
        file = ("--file", DEPLOY / "compose.yaml")
        made = run("docker-compose", *file, "--profile", "monitoring", "config", "--format", "json", **secrets)
        assert set(json.loads(made)["services"]) == {"parley", "postgres", "prometheus", "grafana"}

    def test_its_mounted_files_are_there(self) -> None:
        services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"].values()
        volumes = [each.split(":")[0] for service in services for each in service["volumes"]]
        assert [each for each in volumes if each.startswith(".") and not (DEPLOY / each).exists()] == []

    def test_it_waits_for_the_drain(self) -> None:
        assert float(self.service()["stop_grace_period"].removesuffix("s")) > DRAIN_S


class TestKubernetes:
    def test_schemas(self) -> None:
        validate = pytest.importorskip("kubernetes_validate")
        for each in manifests():
            if each["kind"] != "Kustomization":
                validate.validate(each, "1.33", strict=False)

    def test_kustomization(self, tmp_path: Path) -> None:
        validate = pytest.importorskip("kubernetes_validate")
        made = resources(run("kubectl", "kustomize", KUBERNETES))
        for each in made:
            validate.validate(each, "1.33", strict=True)
        selector = {"app.kubernetes.io/name": "parley"}
        by_kind = {each["kind"]: each for each in made}
        assert by_kind["Deployment"]["spec"]["selector"]["matchLabels"] == selector
        assert by_kind["Service"]["spec"]["selector"] == selector
        assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selector

    def test_the_autoscaler_counts_the_queue(self) -> None:
        (metric,) = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
        assert f"{metric['pods']['metric']['name']}{{" in TestMonitoring().complete()

    async def test_probes_are_routes(self, site: Site) -> None:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container()[name]["httpGet"]
            assert (await site.client.get(probe["path"])).status_code == 200
            assert probe["port"] == "http"
        assert container()["readinessProbe"]["httpGet"]["path"] == "/health/ready"

    def test_it_waits_for_the_drain(self) -> None:
        pod = of_kind("Deployment")["spec"]["template"]["spec"]
        before = float(container()["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert pod["terminationGracePeriodSeconds"] > before + DRAIN_S


class TestSystemd:
    def test_unit(self, tmp_path: Path) -> None:
        unit = tmp_path / UNIT.name
        unit.write_text(UNIT.read_text("utf-8").replace("/opt/parley/bin/parley", program("true")))
        run("systemd-analyze", "verify", "--man=no", unit)
        security = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
        level = re.search(r"exposure level for parley.service: ([\d.]+)", security)
        assert level
        assert float(level[1]) < 2, security

    def test_it_waits_for_the_drain(self) -> None:
        found = re.search(r"TimeoutStopSec=(\d+)", UNIT.read_text("utf-8"))
        assert found
        assert float(found[1]) > DRAIN_S


def test_drain_is_the_default() -> None:
    assert Settings(_env_file=None).server.drain_s == DRAIN_S


def test_named_settings_exist() -> None:
    known = {each.name for section in sections() for each in section.settings}
    for path in [ROOT / "Dockerfile", *DEPLOY.rglob("*")]:
        if path.is_file():
            named = set(re.findall(r"\bPARLEY_[A-Z_]+[A-Z]\b", path.read_text("utf-8")))
            assert named <= known, path


def test_dockerfile() -> None:
    run("hadolint", ROOT / "Dockerfile")


def test_image_is_not_root_and_has_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    assert "--require-hashes --requirement requirements.lock" in text
    assert ".env" in (ROOT / ".dockerignore").read_text("utf-8").split()
    assert "deploy" in (ROOT / ".dockerignore").read_text("utf-8").split()
