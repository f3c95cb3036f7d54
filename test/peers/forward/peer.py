"""
Stand-ins for examples/forward, in Python: "peer.py server" accepts TCP
connections and sends them on, "peer.py forward" receives and answers them.

Environment: HOST, PORT, FORWARD_SOCKET. Every event is one JSON line on stdout.
They are as simple as they look: each connection is read once, with a blocking
call, and the forwarder closes the Unix connection before it answers.
"""

import json
import os
import signal
import socket
import sys
import threading

PATH = os.environ.get("FORWARD_SOCKET", "/tmp/forward_demo.sock")
ADDRESS = (os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080")))


def report(event, **more):
    print(json.dumps({"event": event, "pid": os.getpid(), "runtime": "python", **more}), flush=True)


def answer(connection, text):
    with connection:
        request = connection.recv(1024).decode()
        connection.sendall(text.encode())
        report("answered", request=request, answer=text, remote="%s:%d" % connection.getpeername())


def hand_over(connection):
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(PATH)
            socket.send_fds(channel, [b"forward"], [connection.fileno()])
        except OSError:
            return False
    connection.close()
    return True


def server():
    listener = socket.create_server(ADDRESS, backlog=128)
    report("open", address="%s:%d" % listener.getsockname())
    while True:
        connection, _ = listener.accept()
        if not hand_over(connection):
            threading.Thread(target=answer, args=(connection, "process by server"), daemon=True).start()


def forward():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(PATH)
    listener.listen(128)
    report("open", path=PATH)
    while True:
        channel, _ = listener.accept()
        with channel:
            word, descriptors, _, _ = socket.recv_fds(channel, 64, 1)
        if word != b"forward" or len(descriptors) != 1:
            report("refused", message=repr(word))
            continue
        connection = socket.socket(fileno=descriptors[0])
        threading.Thread(target=answer, args=(connection, "process by forward"), daemon=True).start()


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
{"server": server, "forward": forward}[sys.argv[1]]()
