/*
 * The client of the bench "datagrams": UDP over loopback, one thread, so small
 * that the server is what is measured. A datagram is answered with itself.
 *
 *   0   1  tag: the generation whose flow it is
 *   4   4  number of the round: late answers of an earlier one do not count
 *   8   8  when it was sent, in milliseconds
 *   16  16 nothing
 *
 * The ports stay the same for as long as the client lives. Each line on stdin is
 * one round, answered by one JSON line on stdout:
 *
 *   ROUND window PORT MS COUNT TAG   COUNT datagrams are on their way all the time
 *   ROUND rate PORT MS RATE TAG      RATE datagrams a second, whatever comes back
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FLOWS = 64, SIZE = 32, EVENTS = 64, LATENCIES = 1 << 21, BUFFER = 8 << 20, LOST_MS = 200, REST_MS = 500 };

static int flows[FLOWS], epoll;
static uint32_t round_number;
static long sent, answered;
static double *latencies;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void open_flows(void) {
  epoll = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < FLOWS; i++) {
    flows[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (flows[i] < 0) fail("socket");
    int size = BUFFER;
    if (setsockopt(flows[i], SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) != 0) {
      setsockopt(flows[i], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    struct sockaddr_in at = { .sin_family = AF_INET };
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(flows[i], (struct sockaddr *)&at, sizeof at) != 0) fail("bind");
    struct epoll_event event = { .events = EPOLLIN, .data.fd = flows[i] };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, flows[i], &event) != 0) fail("epoll_ctl");
  }
}

/* Only what comes from there is heard then. What lies there already is dropped. */
static void connect_flows(int port) {
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  char rest[SIZE];
  for (int i = 0; i < FLOWS; i++) {
    if (connect(flows[i], (struct sockaddr *)&to, sizeof to) != 0) fail("connect");
    while (recv(flows[i], rest, sizeof rest, 0) >= 0 || errno == ECONNREFUSED) {}
  }
}

static void send_one(int fd, int tag) {
  char datagram[SIZE] = { tag };
  double now = now_ms();
  memcpy(datagram + 4, &round_number, 4);
  memcpy(datagram + 8, &now, 8);
  if (send(fd, datagram, SIZE, 0) == SIZE) sent++;
  else if (errno != ECONNREFUSED) fail("send");
}

/* Reads what there is; for each answer another datagram goes out, if again is set. */
static void read_all(int fd, int tag, int again) {
  char answer[SIZE];
  for (;;) {
    ssize_t size = recv(fd, answer, sizeof answer, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size != SIZE || memcmp(answer + 4, &round_number, 4) != 0) continue;
    double at;
    memcpy(&at, answer + 8, 8);
    if (answered < LATENCIES) latencies[answered] = now_ms() - at;
    answered++;
    if (again) send_one(fd, tag);
  }
}

static int wait_and_read(int tag, int again, int limit_ms) {
  struct epoll_event events[EVENTS];
  int ready = epoll_wait(epoll, events, EVENTS, limit_ms);
  for (int i = 0; i < ready; i++) read_all(events[i].data.fd, tag, again);
  return ready;
}

/* Until everything is answered, or nothing comes any more. */
static void read_rest(int tag) {
  for (double heard = now_ms(); answered < sent && now_ms() - heard < REST_MS;) {
    if (wait_and_read(tag, 0, 10) > 0) heard = now_ms();
  }
}

/* What is lost is sent anew after a while, so that the window stays open. */
static double window(double ms, int count, int tag) {
  double start = now_ms(), heard = start, end = start;
  long lost = 0;
  for (int i = 0; i < count; i++) send_one(flows[i % FLOWS], tag);
  while (end - start < ms) {
    if (wait_and_read(tag, 1, 10) > 0) heard = now_ms();
    else if (now_ms() - heard > LOST_MS) {
      for (long missing = sent - answered - lost; missing > 0; missing--, lost++) send_one(flows[missing % FLOWS], tag);
      heard = now_ms();
    }
    end = now_ms();
  }
  return answered / (end - start) * 1e3;
}

/* Rests for moments only: a timer of a millisecond would send in bursts. */
static double rate(double ms, double per_second, int tag) {
  long total = (long)(ms * per_second / 1e3);
  double start = now_ms();
  while (sent < total) {
    long due = (long)((now_ms() - start) * per_second / 1e3);
    for (int burst = 0; sent < due && sent < total && burst < EVENTS; burst++) send_one(flows[sent % FLOWS], tag);
    wait_and_read(tag, 0, 0);
    if (sent >= due) {
      struct timespec rest = { 0, 50000 };
      nanosleep(&rest, NULL);
    }
  }
  return sent / (now_ms() - start) * 1e3;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(void) {
  setlinebuf(stdout);
  latencies = malloc(LATENCIES * sizeof *latencies);
  open_flows();
  printf("{\"event\":\"open\",\"pid\":%d}\n", getpid());
  int port, tag;
  char mode[8];
  double ms, amount;
  while (scanf("%u %7s %d %lf %lf %d", &round_number, mode, &port, &ms, &amount, &tag) == 6) {
    connect_flows(port);
    sent = answered = 0;
    double per_second = strcmp(mode, "window") == 0 ? window(ms, (int)amount, tag) : rate(ms, amount, tag);
    read_rest(tag);
    long count = answered < LATENCIES ? answered : LATENCIES;
    qsort(latencies, count, sizeof *latencies, compare);
    double p50 = count ? latencies[count / 2] : 0, p99 = count ? latencies[count * 99 / 100] : 0;
    printf("{\"event\":\"round %u\",\"pid\":%d,\"sent\":%ld,\"answered\":%ld,\"perSecond\":%.1f,"
           "\"p50Ms\":%.3f,\"p99Ms\":%.3f}\n",
           round_number, getpid(), sent, answered, per_second, p50, p99);
  }
}
