# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.x conversations whose truth is known, and the real sockets that play them.

A conversation is written down byte by byte (``model``, ``messages``), laid out as the order in
which the two ends write (``schedule``), played over real TCP sockets (``peers``), and its truth
(``truth``) is worked out from what it was written to be, never by parsing. Nothing here imports
podscope or an HTTP library, except ``observed`` (podscope's rows) and ``oracle`` (h11).
"""
