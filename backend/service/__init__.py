# SPDX-License-Identifier: GPL-3.0-or-later
"""The local service: HTTP API, durable queue, blobs, supervisor and worker. The API process never imports torch."""
