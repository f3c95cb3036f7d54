/*
 * What the kernel asks for descriptors: sendmsg(2), recvmsg(2) and close(2) over
 * a socketpair, in batches of 253, without any runtime. The reference of the
 * bench "descriptors", which sends the same batches through the library.
 *
 * Usage: descriptors close|close_range. Each line on stdin, "ROUND MS", is one
 * round of that many milliseconds; its answer is one JSON line on stdout.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 253, HEAD = 16 };

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* One by one, as a program that knows nothing of their numbers does. */
static void close_each(const int *descriptors, int count) {
  for (int i = 0; i < count; i++) close(descriptors[i]);
}

/* A contiguous run of numbers in one call; what recvmsg(2) installs usually is one. */
static void close_runs(const int *descriptors, int count) {
  for (int start = 0; start < count;) {
    int end = start;
    while (end + 1 < count && descriptors[end + 1] == descriptors[end] + 1) end++;
    if (syscall(SYS_close_range, descriptors[start], descriptors[end], 0) != 0) fail("close_range");
    start = end + 1;
  }
}

/* Returns how long the closing took, which the answer also gives without. */
static double pass_batch(const int pair[2], const int *sent, void (*close_all)(const int *, int)) {
  static char data[256], control[CMSG_SPACE(512 * sizeof(int))];
  struct iovec part = { .iov_base = data, .iov_len = HEAD };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control };
  message.msg_controllen = CMSG_SPACE(BATCH * sizeof(int));
  struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_len = CMSG_LEN(BATCH * sizeof(int));
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  memcpy(CMSG_DATA(rights), sent, BATCH * sizeof(int));
  if (sendmsg(pair[0], &message, MSG_DONTWAIT | MSG_NOSIGNAL) != HEAD) fail("sendmsg");

  message.msg_controllen = sizeof control;
  if (recvmsg(pair[1], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != HEAD) fail("recvmsg");
  rights = CMSG_FIRSTHDR(&message);
  if (!rights || rights->cmsg_len != CMSG_LEN(BATCH * sizeof(int)) || message.msg_flags & MSG_CTRUNC) {
    fail("a batch did not arrive whole");
  }
  int received[BATCH];
  memcpy(received, CMSG_DATA(rights), sizeof received);
  double start = now_ms();
  close_all(received, BATCH);
  return now_ms() - start;
}

int main(int count, char **arguments) {
  void (*close_all)(const int *, int) =
      count > 1 && strcmp(arguments[1], "close_range") == 0 ? close_runs : close_each;
  int pair[2], sent[BATCH];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) fail("socketpair");
  for (int i = 0; i < BATCH; i++) {
    sent[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sent[i] < 0) fail("socket");
  }
  setlinebuf(stdout);
  printf("{\"event\":\"open\",\"pid\":%d}\n", getpid());
  int round;
  double ms;
  while (scanf("%d %lf", &round, &ms) == 2) {
    long passed = 0;
    double start = now_ms(), end, closing = 0;
    do {
      closing += pass_batch(pair, sent, close_all);
      passed += BATCH;
      end = now_ms();
    } while (end - start < ms);
    printf("{\"event\":\"round %d\",\"pid\":%d,\"perSecond\":%.0f,\"openPerSecond\":%.0f}\n", round, getpid(),
           passed / (end - start) * 1e3, passed / (end - start - closing) * 1e3);
  }
}
