"""Ray jobs: submission, KubeRay RayJobs, heartbeat."""
