import assert from "node:assert/strict";
import process from "node:process";
import { Notifier } from "../../src/foreign/notify.ts";
import { bindSocket, cookieOf, openSocket } from "../../src/sockets/socket.ts";
import { disposeAll, OwnedDescriptor } from "../../src/sockets/descriptors.ts";
import { type Incoming, messageRoom, receiveMessage } from "../../src/channels/message.ts";
import { TemporaryFolder } from "../unit/children.ts";
import { openReadiness } from "../../src/channels/readiness.ts";
import { openNull, patienceMs, runtime, sleep, socketPair, takeoverError, test, until } from "./support.ts";

type Variables = Readonly<Record<string, string>>;

// What waiting needs stays open for the life of the process.
await openReadiness(runtime);

const { env } = process;

/** Runs something that reads variables as if the process had been started with these. */
function withVariables<T>(variables: Variables, body: () => T): T {
  const before = Object.keys(variables).map((name) => [name, env[name]] as const);
  Object.assign(env, variables);
  try {
    return body();
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete env[name];
      else env[name] = value;
    }
  }
}

/** The service manager's end of the notify socket. */
class Manager implements Disposable {
  readonly #folder = new TemporaryFolder();
  readonly #socket: OwnedDescriptor;
  /** What a process gets as NOTIFY_SOCKET. */
  readonly variable: string;

  constructor(abstractName?: string) {
    const path = this.#folder.file("notify.sock");
    this.#socket = new OwnedDescriptor(runtime, openSocket(runtime, "unix", "dgram"));
    bindSocket(runtime, this.#socket.number, { family: "unix", path: abstractName ? `\0${abstractName}` : path });
    this.variable = abstractName ? `@${abstractName}` : path;
  }

  /** A notifier of a process that this one has started. */
  notifier(limitMs = patienceMs): Notifier {
    return notifierFor(this.variable, limitMs);
  }

  /** The next message, if it is there. */
  next(): Incoming | null {
    const message = receiveMessage(runtime, this.#socket.number, messageRoom);
    return typeof message === "number" ? null : message;
  }

  /** The text of every message that is there; they carry no descriptors. */
  texts(): string[] {
    const texts: string[] = [];
    for (let message = this.next(); message; message = this.next()) {
      assert.deepEqual(message.ancillary.descriptors, []);
      texts.push(textOf(message));
    }
    return texts;
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
    this.#folder[Symbol.dispose]();
  }
}

function notifierFor(NOTIFY_SOCKET: string, limitMs = patienceMs): Notifier {
  return withVariables({ NOTIFY_SOCKET }, () => new Notifier(runtime, { limitMs }));
}

function textOf({ bytes }: Incoming): string {
  return new TextDecoder().decode(bytes);
}

function owned({ ancillary }: Incoming): OwnedDescriptor[] {
  return ancillary.descriptors.map((number) => new OwnedDescriptor(runtime, number));
}

test("Notifier sends each message as one datagram, in order", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  assert.equal(notifier.active, true);
  const sent = [
    notifier.ready(),
    notifier.status("warm\nand ready"),
    notifier.mainPid(4_711),
    notifier.watchdog(),
    notifier.removeDescriptors("web"),
    notifier.stopping(),
    notifier.send(["EXTEND_TIMEOUT_USEC=1000000", "ERRNO=2"]),
  ];
  assert.deepEqual(await Promise.all(sent), sent.map(() => true));
  assert.deepEqual(manager.texts(), [
    "READY=1",
    "STATUS=warm and ready",
    "MAINPID=4711",
    "WATCHDOG=1",
    "FDSTOREREMOVE=1\nFDNAME=web",
    "STOPPING=1",
    "EXTEND_TIMEOUT_USEC=1000000\nERRNO=2",
  ]);
});

test("Notifier sends at once: the message is there before the turn ends", async () => {
  using manager = new Manager();
  const sent = manager.notifier().ready();
  assert.deepEqual(manager.texts(), ["READY=1"]);
  await sent;
});

test("Notifier.reloading says when on a clock that only goes forward", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  const before = process.hrtime.bigint() / 1_000n;
  await notifier.reloading();
  const [, usec] = /^RELOADING=1\nMONOTONIC_USEC=(\d+)$/.exec(manager.texts()[0]!)!;
  await notifier.reloading();
  const [, later] = /USEC=(\d+)$/.exec(manager.texts()[0]!)!;
  assert.ok(BigInt(usec!) <= BigInt(later!));
  // The runtimes' own clock is the same one, though it need not begin where the kernel's does.
  if (runtime.name === "node") assert.ok(BigInt(usec!) >= before && BigInt(usec!) < before + 60_000_000n);
});

test("Notifier reaches an abstract name", async () => {
  using manager = new Manager(`takeover-test-${process.pid}`);
  await manager.notifier().ready();
  assert.deepEqual(manager.texts(), ["READY=1"]);
});

test("Notifier does nothing without a service manager, and says so", async () => {
  const notifier = new Notifier(runtime);
  assert.equal(notifier.active, false);
  using file = openNull();
  const done = [
    notifier.ready(),
    notifier.reloading(),
    notifier.stopping(),
    notifier.status("idle"),
    notifier.mainPid(1),
    notifier.watchdog(),
    notifier.storeDescriptors("web", [file.number]),
    notifier.removeDescriptors("web"),
    notifier.barrier(),
  ];
  assert.deepEqual(await Promise.all(done), done.map(() => false));
});

test("Notifier throws for a NOTIFY_SOCKET that is neither a path nor an abstract name", () => {
  for (const NOTIFY_SOCKET of ["notify.sock", "@", "vsock:2:1234"]) {
    assert.throws(() => notifierFor(NOTIFY_SOCKET), {
      ...takeoverError("ERR_TAKEOVER_PATH"),
      message:
        "Cannot notify the service manager: expected NOTIFY_SOCKET to be an absolute path, or @ and an abstract name, " +
        `got ${JSON.stringify(NOTIFY_SOCKET)}; correct it or unset it`,
    });
  }
});

test("Notifier throws when the service manager is not there", async () => {
  const missing = notifierFor("/nowhere/notify.sock");
  await assert.rejects(missing.ready(), { name: "SystemError", code: "ENOENT", syscall: "sendmsg" });
});

/** More datagrams than wait at any socket (net.unix.max_dgram_qlen). */
const tooMany = 10_000;

test("Notifier waits for a service manager that does not read, and keeps the order", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  const sends: Promise<boolean>[] = [];
  let sentCount = 0;
  const send = () => sends.push(notifier.mainPid(sends.length + 1).finally(() => sentCount++));
  while (sentCount === sends.length && sentCount < tooMany) {
    send();
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.ok(sentCount < sends.length, "it never waits");
  for (let more = 0; more < 5; more++) send();
  const texts: string[] = [];
  await until(() => texts.push(...manager.texts()) === sends.length, "all messages");
  await Promise.all(sends);
  await notifier.idle();
  assert.deepEqual(texts, sends.map((_, index) => `MAINPID=${index + 1}`));
});

test("Notifier gives up on a service manager that never reads", async () => {
  using manager = new Manager();
  const notifier = manager.notifier(20);
  const fill = async () => {
    for (let count = 0; count < tooMany; count++) await notifier.ready();
  };
  await assert.rejects(fill(), {
    ...takeoverError("ERR_TAKEOVER_TIMEOUT"),
    message: "Cannot notify the service manager within 20 ms: it does not read (EAGAIN)",
  });
});

test("Notifier.storeDescriptors passes the sockets themselves, under a name", async () => {
  using manager = new Manager();
  const pair = socketPair();
  try {
    await manager.notifier().storeDescriptors("web", pair.map(({ number }) => number));
    const message = manager.next()!;
    const copies = owned(message);
    const cookies = (some: readonly OwnedDescriptor[]) => some.map(({ number }) => cookieOf(runtime, number));
    assert.deepEqual([textOf(message), cookies(copies)], ["FDSTORE=1\nFDNAME=web", cookies(pair)]);
    disposeAll(copies);
  } finally {
    disposeAll(pair);
  }
});

test("Notifier.storeDescriptors passes 253, with FDPOLL=0 when they are not to be watched, and refuses more", async () => {
  using manager = new Manager();
  using file = openNull();
  const notifier = manager.notifier();
  const many = (count: number) => new Array<number>(count).fill(file.number);
  await notifier.storeDescriptors("state", many(253), { poll: false });
  const message = manager.next()!;
  const copies = owned(message);
  disposeAll(copies);
  assert.deepEqual([textOf(message), copies.length], ["FDSTORE=1\nFDNAME=state\nFDPOLL=0", 253]);
  await assert.rejects(notifier.storeDescriptors("state", many(254)), {
    ...takeoverError("ERR_TAKEOVER_TOO_MANY"),
    message: "Cannot send 254 descriptors in one message: expected at most 253; send several",
  });
  assert.equal(manager.next(), null);
});

test("Notifier.storeDescriptors throws for a closed descriptor", async () => {
  using manager = new Manager();
  await assert.rejects(manager.notifier().storeDescriptors("web", [19_999]), { code: "EBADF" });
});

test("Notifier takes the names that systemd takes, but no empty one", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  for (const name of ["", "a:b", "a\nb", "ä", "\x7f", "a".repeat(256)]) {
    await assert.rejects(notifier.removeDescriptors(name), takeoverError("ERR_TAKEOVER_LIMIT"), JSON.stringify(name));
    await assert.rejects(
      notifier.storeDescriptors(name, []),
      takeoverError("ERR_TAKEOVER_LIMIT"),
      JSON.stringify(name),
    );
  }
  for (const name of ["web", ' !"/09;=~', "a".repeat(255)]) await notifier.removeDescriptors(name);
  assert.equal(manager.texts().length, 3);
});

test("Notifier.send refuses what systemd would not read as meant", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  const tooLong = `STATUS=${"x".repeat(4_090)}`;
  for (const line of ["", "READY", "ready=1", "STATUS=a\nSTOPPING=1", "STATUS=a\0", tooLong]) {
    await assert.rejects(notifier.send([line]), takeoverError("ERR_TAKEOVER_LIMIT"));
  }
  await assert.rejects(notifier.send([]), takeoverError("ERR_TAKEOVER_LIMIT"));
  await notifier.send([`STATUS=${"x".repeat(4_089)}`]);
  assert.deepEqual(manager.texts().map((text) => text.length), [4_096]);
});

test("Notifier.barrier waits until the service manager has closed its descriptor", async () => {
  using manager = new Manager();
  let isOver = false;
  const barrier = manager.notifier().barrier({ timeoutMs: patienceMs }).finally(() => isOver = true);
  const message = manager.next()!;
  const [end, ...more] = owned(message);
  assert.deepEqual([textOf(message), more], ["BARRIER=1", []]);
  // A word is no end.
  runtime.libc.write(end!.number, new TextEncoder().encode("x"), 1);
  await sleep(30);
  assert.equal(isOver, false);
  end![Symbol.dispose]();
  assert.equal(await barrier, true);
});

test("Notifier.barrier ends with its time, and with its signal", async () => {
  using manager = new Manager();
  const notifier = manager.notifier();
  await assert.rejects(notifier.barrier({ timeoutMs: 10 }), takeoverError("ERR_TAKEOVER_TIMEOUT"));
  const controller = new AbortController();
  const aborted = notifier.barrier({ signal: controller.signal });
  controller.abort(new Error("enough"));
  await assert.rejects(aborted, { message: "enough" });
  disposeAll([...owned(manager.next()!), ...owned(manager.next()!)]);
});

test("Notifier.keepWatchdog gives signs of life in half of the time, until it is stopped", async () => {
  using manager = new Manager();
  const variables = { WATCHDOG_USEC: "40000", WATCHDOG_PID: String(process.pid) };
  const begunAt = performance.now();
  const stop = withVariables(variables, () => manager.notifier().keepWatchdog());
  const texts: string[] = [];
  await until(() => texts.push(...manager.texts()) >= 4, "signs of life");
  assert.ok(performance.now() - begunAt >= 3 * 20 - 5);
  stop();
  manager.texts();
  await sleep(60);
  assert.deepEqual([new Set(texts), manager.texts()], [new Set(["WATCHDOG=1"]), []]);
});

test("Notifier.keepWatchdog is for the process that is waited for, and for its successor when it says so", () => {
  using manager = new Manager();
  const beats = (variables: Variables, options?: { successor: boolean }) => {
    withVariables(variables, () => manager.notifier().keepWatchdog(options))();
    return manager.texts().length;
  };
  const WATCHDOG_USEC = "60000000";
  assert.deepEqual([beats({}), beats({ WATCHDOG_USEC }), beats({ WATCHDOG_USEC, WATCHDOG_PID: "1" })], [0, 1, 0]);
  assert.equal(beats({ WATCHDOG_USEC, WATCHDOG_PID: "1" }, { successor: true }), 1);
  assert.throws(() => beats({ WATCHDOG_USEC: "soon" }), takeoverError("ERR_TAKEOVER_LIMIT"));
});
