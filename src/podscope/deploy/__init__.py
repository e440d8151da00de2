# SPDX-License-Identifier: Apache-2.0
"""The agents of a cluster: their manifests, putting them there, their state, taking them away.

The manifests are the files of ``deploy/base``, which ``kubectl apply -k`` takes.
"""
