"""The simulation of replicas does what its policies say."""

from tools.bench.replicas import POLICIES, Load, Simulation, Times


def test_affinity_finds_prefixes_and_claiming_shortens_waits() -> None:
    load = Load(burst=20.0, burst_size=60)
    results = {
        policy.name: Simulation(4, policy, load, Times(slots=8), seconds=120, seed=3).run() for policy in POLICIES
    }
    assert results["affinity"].prefix_hits > 1.5 * results["neither"].prefix_hits
    assert results["claiming"].background_p95_s < 0.8 * results["neither"].background_p95_s
    assert results["both"] == Simulation(4, POLICIES[3], load, Times(slots=8), seconds=120, seed=3).run()
