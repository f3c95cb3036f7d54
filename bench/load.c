/*
 * The client of the benches: HTTP/1.1 over loopback, one thread, no pipelining,
 * so small that the server is what is measured.
 *
 * Each line on stdin is one round, answered by one JSON line on stdout:
 *
 *   ROUND kept PORT MS CONNECTIONS   requests one after another on kept connections
 *   ROUND fresh PORT MS RATE         RATE new connections a second, a request on each
 *
 * A fresh connection is opened when it is due, whatever became of the ones
 * before, and its latency counts from then: a server that stalls is not spared
 * the connections that would have come meanwhile.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER = 4096, EVENTS = 256, PATIENCE_MS = 5000 };

struct connection {
  int fd;
  int sent;
  int length;
  double due;
  char answer[ANSWER + 1];
};

static const char kept_request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
static const char fresh_request[] = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* Client addresses of 127.0.1.0/24, so that no round runs out of ports. */
static int connect_to(int port, int number) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  int on = 1;
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct sockaddr_in from = { .sin_family = AF_INET };
  from.sin_addr.s_addr = htonl(0x7f000101 + number % 250);
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
      (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS)) {
    return fd;
  }
  close(fd);
  return -1;
}

static void watch(int epoll, struct connection *connection) {
  struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = connection };
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) fail("epoll_ctl");
}

/* 1 when the whole request has gone out, 0 when it has to wait, -1 on an error. */
static int send_request(struct connection *connection, const char *request, int size) {
  while (connection->sent < size) {
    ssize_t result = send(connection->fd, request + connection->sent, size - connection->sent, MSG_NOSIGNAL);
    if (result < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    connection->sent += result;
  }
  return 1;
}

/* 1 when an answer is whole, 0 when more has to come, -1 when the server ended or reset it. */
static int read_answer(struct connection *connection) {
  for (;;) {
    ssize_t result = recv(connection->fd, connection->answer + connection->length, ANSWER - connection->length, 0);
    if (result < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (result == 0) return -1;
    connection->length += result;
    connection->answer[connection->length] = 0;
    char *body = strstr(connection->answer, "\r\n\r\n");
    if (!body) continue;
    char *size = strcasestr(connection->answer, "\r\ncontent-length:");
    if (strncmp(connection->answer, "HTTP/1.1 200", 12) != 0 || !size || size > body) return -1;
    if (connection->length >= body + 4 - connection->answer + atoi(size + 17)) return 1;
  }
}

static void kept(int round, int port, double ms, int count) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct connection *all = calloc(count, sizeof *all);
  long answered = 0, failed = 0;
  const int size = sizeof kept_request - 1;
  for (int i = 0; i < count; i++) {
    all[i].fd = connect_to(port, i);
    if (all[i].fd < 0) fail("connect");
    watch(epoll, &all[i]);
  }
  double start = now_ms(), end = start;
  struct epoll_event events[EVENTS];
  while (end - start < ms && failed < count) {
    int ready = epoll_wait(epoll, events, EVENTS, 10);
    for (int i = 0; i < ready; i++) {
      struct connection *connection = events[i].data.ptr;
      int result = send_request(connection, kept_request, size);
      if (result == 1) result = read_answer(connection);
      while (result == 1) {
        answered++;
        connection->sent = connection->length = 0;
        result = send_request(connection, kept_request, size);
        if (result == 1) result = read_answer(connection);
      }
      if (result < 0 && epoll_ctl(epoll, EPOLL_CTL_DEL, connection->fd, NULL) == 0) failed++;
    }
    end = now_ms();
  }
  for (int i = 0; i < count; i++) close(all[i].fd);
  close(epoll);
  free(all);
  printf("{\"event\":\"round %d\",\"pid\":%d,\"answered\":%ld,\"perSecond\":%.1f,\"failed\":%ld}\n", round, getpid(),
         answered, answered / (end - start) * 1e3, failed);
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* The value below which that share of the sorted values lies. */
static double quantile(const double *sorted, int count, double share) {
  int at = (int)(share * count);
  return count == 0 ? 0 : sorted[at < count ? at : count - 1];
}

static void fresh(int round, int port, double ms, double rate) {
  int total = (int)(ms * rate / 1e3), opened = 0, active = 0, answered = 0, failed = 0;
  const int size = sizeof fresh_request - 1;
  struct connection *all = calloc(total, sizeof *all);
  double *latencies = calloc(total, sizeof *latencies);
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  long every = (long)(1e9 / rate);
  struct itimerspec period = { { every / 1000000000, every % 1000000000 }, { 0, 1 } };
  timerfd_settime(timer, 0, &period, NULL);
  struct epoll_event tick = { .events = EPOLLIN, .data.ptr = NULL };
  epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &tick);
  double start = now_ms();
  struct epoll_event events[EVENTS];
  while ((opened < total || active > 0) && now_ms() - start < ms + PATIENCE_MS) {
    int ready = epoll_wait(epoll, events, EVENTS, 100);
    for (int i = 0; i < ready; i++) {
      struct connection *connection = events[i].data.ptr;
      if (connection == NULL) {
        unsigned long long ticks;
        if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) fail("timerfd");
        continue;
      }
      int result = send_request(connection, fresh_request, size);
      if (result == 1) result = read_answer(connection);
      if (result == 0) continue;
      if (result == 1) latencies[answered++] = now_ms() - connection->due;
      else failed++;
      close(connection->fd);
      connection->fd = -1;
      active--;
    }
    for (double now = now_ms(); opened < total && now - start >= opened * 1e3 / rate; opened++) {
      struct connection *connection = &all[opened];
      connection->due = start + opened * 1e3 / rate;
      connection->fd = connect_to(port, opened);
      if (connection->fd < 0) {
        failed++;
        continue;
      }
      active++;
      watch(epoll, connection);
    }
  }
  for (int i = 0; i < opened; i++) {
    if (all[i].fd > 0) close(all[i].fd);
  }
  close(timer);
  close(epoll);
  qsort(latencies, answered, sizeof *latencies, compare);
  printf("{\"event\":\"round %d\",\"pid\":%d,\"answered\":%d,\"failed\":%d,"
         "\"p50\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}\n",
         round, getpid(), answered, failed + active, quantile(latencies, answered, 0.5),
         quantile(latencies, answered, 0.99), quantile(latencies, answered, 0.999), quantile(latencies, answered, 1));
  free(latencies);
  free(all);
}

int main(void) {
  setlinebuf(stdout);
  printf("{\"event\":\"open\",\"pid\":%d}\n", getpid());
  int round, port;
  char mode[8];
  double ms, amount;
  while (scanf("%d %7s %d %lf %lf", &round, mode, &port, &ms, &amount) == 5) {
    if (strcmp(mode, "kept") == 0) kept(round, port, ms, (int)amount);
    else fresh(round, port, ms, amount);
  }
}
