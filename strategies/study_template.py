"""The commented study file that ``vht study init`` writes."""

__all__ = ["STUDY_TEMPLATE"]

STUDY_TEMPLATE = """\
# A study: what to learn, from whom, under which permit, at what cost in privacy. Paths are relative to this file.
# 'vht study plan' shows what follows from it; 'vht study run' asks the hospitals.

[study]
id = "my-study-1"
title = "What this study is about, in one line that a hospital's operator reads"
permit = "permit.jwt"          # from the health data access body: vht permit issue
user_key = "user.key"          # of a data user whom the permit lists: vht permit keygen . --name user
purpose = "53.1.e.ii"          # Article 53(1); it must be in the permit
categories = ["51.1.a"]        # Article 51(1)

[component]
name = "cardio-risk"           # vht component list
profile = "cardiometabolic"

[privacy]                      # per patient, at one node; noise is calibrated from it
epsilon = 3.0                  # all of the study
delta = 1e-5
cohort_epsilon = 1.5           # of it, for the synthetic cohort; leave out for no cohort
evaluation_epsilon = 1.0       # on test patients; leave out for no evaluation

[training]
rounds = 5
local_steps = 12
sampling_rate = 0.25
clipping_norm = 1.0
learning_rate = 0.5

[federation]
coordinator = "../coordinator" # state directory: vht coordinator init
ca = "../pki/ca.crt"
issuer = "https://127.0.0.1:8443"
# platform = "https://127.0.0.1:8444"
round_deadline_s = 120.0
approval_deadline_s = 3600.0

[[nodes]]
name = "hospital-1"            # as enrolled: vht coordinator enrol
url = "https://127.0.0.1:9443" # its outward address
dataset = "urn:vht:hospital-1:ehr"
"""
