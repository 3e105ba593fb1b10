"""The table of all cases, in the order in which they run."""

from collections.abc import Sequence

from milcore.errors import InputError
from tests.conformance import (
    endings,
    fake_doctor,
    fake_launcher,
    installation,
    losses,
    network,
    pipelines,
    refusals,
    runs,
)
from tests.conformance.case import Case

OVERLAY, COHORT, STANDING = "overlay", "cohort", "standing cluster"
BY_HTTP, BY_RAYJOB = "encode by http://", "encode by rayjob"
KUBEFLOW, MAIN = "Kubeflow's namespace", "main pipeline"
ENDED = "exit code 0, no RayJob left"
WENT_ON = "goes on at its checkpoint, ends well, no RayJob left"

RECORDED = tuple(
    Case(f"recorded: {name}", expected, "fake", way)
    for name, expected, way in (
        ("submit", "one RayJob, followed to its end, removed", fake_launcher.submit),
        ("follow", "the driver's lines once and in order, the RayJob's states", fake_launcher.follow),
        ("adopt", "a launcher's retry follows the same RayJob and owns it", fake_launcher.adopt),
        ("lost head", "the next RayJob after a pause", fake_launcher.head_lost),
        ("lost supervisor", "the next RayJob after a pause", fake_launcher.supervisor_lost),
        ("lost submitter", "the next RayJob after a pause", fake_launcher.submitter_lost),
        ("RayJob deleted", "the next RayJob after a pause", fake_launcher.deleted),
        ("suspension", "is waited for", fake_launcher.suspended),
        ("quota", "the step ends with the quota's message", fake_launcher.quota),
        ("secret missing", "the step ends with the secret's name", fake_launcher.secret),
        ("image missing", "the step ends with the image's name", fake_launcher.image),
        ("right missing", "the step names the right", fake_launcher.right),
        ("doctor", "no check fails, nothing is left", fake_doctor.well),
        ("doctor, quota", "quota and pod fail with the quota's name", fake_doctor.quota),
        ("doctor, secret missing", "secret and pod fail", fake_doctor.secret),
        ("doctor, image missing", "the pod fails with the image's name", fake_doctor.image),
        ("doctor, right missing", "rights fail with the right's name", fake_doctor.right),
    )
)
ON_CLUSTER = tuple(
    Case(name, expected, "cluster", way, after)
    for name, expected, way, after in (
        (OVERLAY, "overlays/local applies, the second time without a change", installation.overlay, ""),
        ("other overlays", "the API accepts base, gpu, kubeflow-profile", installation.other_overlays, OVERLAY),
        ("PodSecurity restricted", "refuses a privileged pod, not Ray's pods", installation.pod_security, OVERLAY),
        ("doctor", "no check fails, nothing is left", installation.doctor, OVERLAY),
        (COHORT, "slides synthesised, and ingested from the object store", installation.cohort, OVERLAY),
        (STANDING, "its head becomes ready", installation.standing_cluster, OVERLAY),
        ("port open to steps", "a step's pod reaches the dashboard", network.step, STANDING),
        ("other ports", "a step's pod reaches no other port", network.other_ports, STANDING),
        ("pod without the label", "does not reach the dashboard", network.unlabelled, STANDING),
        ("pod of another namespace", "does not reach the dashboard", network.other_namespace, STANDING),
        (BY_HTTP, "exit code 0", runs.encode_standing, COHORT),
        ("train by http://", "exit code 0", runs.train_standing, BY_HTTP),
        ("tune by http://", "exit code 0", runs.tune_standing, BY_HTTP),
        (BY_RAYJOB, ENDED, runs.encode_rayjob, COHORT),
        ("train by rayjob", ENDED, runs.train_rayjob, BY_RAYJOB),
        ("tune by rayjob", ENDED, runs.tune_rayjob, BY_RAYJOB),
        ("log of a step", "epochs once and in order, the RayJob's states", runs.follow, BY_RAYJOB),
        ("head killed", WENT_ON, losses.head, BY_RAYJOB),
        ("worker killed", WENT_ON, losses.worker, BY_RAYJOB),
        ("submitter killed", ENDED, losses.submitter, BY_RAYJOB),
        ("RayJob deleted underneath", WENT_ON, losses.rayjob, BY_RAYJOB),
        ("launcher killed", "its retry follows the same RayJob to its end", losses.step_process, BY_RAYJOB),
        ("step's pod killed", "its RayJob is removed with it", losses.step_pod, BY_RAYJOB),
        ("SIGTERM to the step", "RayJob and its pods are gone in a minute", endings.terminate, BY_RAYJOB),
        ("RayJob suspended", f"is waited for; resumed, it {WENT_ON}", endings.suspend, BY_RAYJOB),
        ("quota too small for a worker", "the step ends with the quota's message", refusals.quota, BY_RAYJOB),
        ("secret missing", "the step ends with the secret's name", refusals.secret, BY_RAYJOB),
        ("image missing", "the step ends with the image's name", refusals.image, BY_RAYJOB),
        ("right missing", "the step names the right", refusals.right, BY_RAYJOB),
        ("doctor, quota", "the check of the quota fails", refusals.doctor_quota, OVERLAY),
        ("doctor, image missing", "the check of the pod fails", refusals.doctor_image, OVERLAY),
        ("doctor, secret missing", "the check of the secret fails", refusals.doctor_secret, OVERLAY),
    )
)
ON_KUBEFLOW = tuple(
    Case(name, expected, "kubeflow", way, after)
    for name, expected, way, after in (
        ("pipelines compiled", "three files that name the image", pipelines.compile_all, ""),
        (KUBEFLOW, "has secrets, profile and the launcher's rights", pipelines.installation, COHORT),
        (MAIN, "SUCCEEDED", pipelines.main_pipeline, KUBEFLOW),
        ("sweep pipeline", "SUCCEEDED", pipelines.sweep_pipeline, MAIN),
        ("predict pipeline", "SUCCEEDED", pipelines.predict_pipeline, MAIN),
        ("artifacts", "report, model card and metrics are fetched", pipelines.artifacts, MAIN),
        ("main pipeline again", "SUCCEEDED, with fewer pods by Kubeflow's cache", pipelines.caching, MAIN),
        ("failing step", "FAILED; status.json names step and line", pipelines.failing_step, KUBEFLOW),
        ("retry of a step", "its pod killed, another takes its place, SUCCEEDED", pipelines.retry, MAIN),
        ("Terminate", "the run ends, its RayJobs are gone", pipelines.terminate, MAIN),
        ("recurring run", "starts by itself, SUCCEEDED", pipelines.recurring, MAIN),
    )
)
CASES = (*RECORDED, *ON_CLUSTER, *ON_KUBEFLOW)


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """The cases of some names, after those that they build on; all of them where none is named.

    Raises:
        InputError: no case has the name.
    """
    by_name = {case.name: case for case in CASES}
    if unknown := sorted(set(names) - by_name.keys()):
        raise InputError(f"--only: expected names of cases, got {', '.join(unknown)}; allowed: those of the table")
    wanted = set(names or by_name)
    for case in reversed(CASES):
        wanted |= {case.after} if case.name in wanted and case.after else set()
    return [case for case in CASES if case.name in wanted]
