/*
 * The client of the bench "connections": TCP connections on which each line is
 * answered by its number, one thread, so small that the servers are what is
 * measured.
 *
 * Each line on stdin is one round, answered by one JSON line on stdout:
 *
 *   ROUND open PORT COUNT   opens connections
 *   ROUND ask               sends a line on each, and waits for all answers
 *   ROUND watch COUNT       from here on asks so many of them again and again
 *   ROUND rest              stops that, and says how it went
 *   ROUND close             closes all, without TIME_WAIT
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 64, EVENTS = 256, PATIENCE_MS = 30000, REST_MS = 10 };

struct connection {
  int fd;
  long answered;
  int waits;
  double due;
  int length;
  char line[LINE];
};

static struct connection *all;
static int count, watched, epoll;
static long waiting, answers, wrong, ended;
static double longest;

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
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  int on = 1;
  struct linger reset = { .l_onoff = 1 };
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  struct sockaddr_in from = { .sin_family = AF_INET };
  from.sin_addr.s_addr = htonl(0x7f000101 + number % 250);
  struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0) fail("bind");
  if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail("connect");
  return fd;
}

static void open_all(int port, int wanted) {
  all = calloc(wanted, sizeof *all);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  for (count = 0; count < wanted; count++) {
    all[count].fd = connect_to(port, count);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = &all[count] };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, all[count].fd, &event) != 0) fail("epoll_ctl");
  }
}

static void end(struct connection *connection) {
  if (connection->waits) waiting--;
  connection->waits = 0;
  close(connection->fd);
  connection->fd = -1;
  ended++;
}

static void ask(struct connection *connection, double now) {
  if (connection->fd < 0 || connection->waits) return;
  if (send(connection->fd, "x\n", 2, MSG_NOSIGNAL) != 2) return end(connection);
  connection->waits = 1;
  connection->due = now;
  waiting++;
}

static void answer(struct connection *connection, double now) {
  connection->answered++;
  if (!connection->waits || atol(connection->line) != connection->answered) {
    wrong++;
    return;
  }
  double ms = now - connection->due;
  if (ms > longest) longest = ms;
  connection->waits = 0;
  connection->due = now + REST_MS;
  waiting--;
  answers++;
}

static void receive(struct connection *connection, double now) {
  char bytes[4096];
  ssize_t size = recv(connection->fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) return end(connection);
  for (ssize_t at = 0; at < size; at++) {
    if (bytes[at] == '\n') {
      connection->line[connection->length] = 0;
      connection->length = 0;
      answer(connection, now);
    } else if (connection->length < LINE - 1) {
      connection->line[connection->length++] = bytes[at];
    }
  }
}

static void turn(int timeout_ms) {
  struct epoll_event events[EVENTS];
  int ready = epoll_wait(epoll, events, EVENTS, timeout_ms);
  for (int i = 0; i < ready; i++) {
    if (events[i].data.ptr) receive(events[i].data.ptr, now_ms());
  }
}

/* Those that are watched lie between the others, so that they move at different times. */
static void ask_watched(void) {
  double now = now_ms();
  for (int i = 0; i < watched; i++) {
    struct connection *connection = &all[(long)i * count / watched];
    if (connection->due <= now) ask(connection, now);
  }
}

static void settle(void) {
  double until = now_ms() + PATIENCE_MS;
  while (waiting > 0 && now_ms() < until) turn(10);
}

static void ask_all(void) {
  for (int i = 0; i < count; i++) {
    ask(&all[i], now_ms());
    if (i % EVENTS == 0) turn(0);
  }
  settle();
}

static void close_all(void) {
  for (int i = 0; i < count; i++) if (all[i].fd >= 0) close(all[i].fd);
  close(epoll);
  free(all);
  count = watched = 0;
  waiting = ended = 0;
}

static void report(int round) {
  printf("{\"event\":\"round %d\",\"pid\":%d,\"count\":%d,\"answers\":%ld,\"unanswered\":%ld,"
    "\"wrong\":%ld,\"ended\":%ld,\"longestMs\":%.3f}\n",
    round, getpid(), count, answers, waiting, wrong, ended, longest);
  answers = wrong = 0;
  longest = 0;
}

/* Whether a line has come; what is watched goes on meanwhile. */
static int has_command(void) {
  struct epoll_event event;
  static int input = -1;
  if (input < 0) {
    input = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted = { .events = EPOLLIN };
    if (epoll_ctl(input, EPOLL_CTL_ADD, STDIN_FILENO, &wanted) != 0) fail("epoll_ctl");
  }
  return epoll_wait(input, &event, 1, watched > 0 ? 0 : -1) > 0;
}

int main(void) {
  char line[256], word[16];
  setvbuf(stdout, NULL, _IOLBF, 0);
  /* Only whole lines are written to it, one at a time. */
  setvbuf(stdin, NULL, _IONBF, 0);
  printf("{\"event\":\"open\",\"pid\":%d}\n", getpid());
  for (;;) {
    while (!has_command()) {
      ask_watched();
      turn(1);
    }
    int round, first = 0, second = 0;
    if (!fgets(line, sizeof line, stdin)) return 0;
    if (sscanf(line, "%d %15s %d %d", &round, word, &first, &second) < 2) return 1;
    if (strcmp(word, "open") == 0) open_all(first, second);
    if (strcmp(word, "ask") == 0) ask_all();
    if (strcmp(word, "watch") == 0) watched = first < count ? first : count;
    if (strcmp(word, "rest") == 0) {
      watched = 0;
      settle();
    }
    if (strcmp(word, "close") == 0) close_all();
    report(round);
  }
}
