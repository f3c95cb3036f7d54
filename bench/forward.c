/*
 * What the kernel asks for passing accepted connections on, without any
 * runtime: the reference of the bench "forward", and its client.
 *
 *   forward server     accept, sendmsg with SCM_RIGHTS, close
 *   forward receiver   recvmsg, close
 *   forward client     fills the accept queue, and closes
 *
 * FORWARD_SOCKET names the Unix path between the first two. Each line on stdin
 * is one round, answered by one JSON line on stdout:
 *
 *   ROUND one COUNT         server and receiver: over one Unix connection
 *   ROUND each COUNT        over one Unix connection each
 *   ROUND fill COUNT PORT   client: so many connections
 *   ROUND close COUNT       client: resets them all, so that none is left in TIME_WAIT
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char word[] = "forward";

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void wait_for(int fd, short events) {
  if (errno != EAGAIN) fail("wait");
  struct pollfd entry = { .fd = fd, .events = events };
  if (poll(&entry, 1, 10000) != 1) fail("poll");
}

static struct sockaddr_un path_address(void) {
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  strncpy(address.sun_path, getenv("FORWARD_SOCKET"), sizeof address.sun_path - 1);
  return address;
}

static int connect_channel(void) {
  struct sockaddr_un address = path_address();
  int channel = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  while (connect(channel, (struct sockaddr *)&address, sizeof address) != 0) {
    if (errno != EAGAIN) fail("connect");
    usleep(1000);
  }
  return channel;
}

static int accept_one(int listener, int flags) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, flags);
    if (fd >= 0) return fd;
    wait_for(listener, POLLIN);
  }
}

static void send_one(int channel, int fd) {
  struct iovec part = { .iov_base = (void *)word, .iov_len = strlen(word) };
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { 0 };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control };
  message.msg_controllen = sizeof control;
  struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  while (sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) wait_for(channel, POLLOUT);
}

static int receive_one(int channel) {
  char data[64];
  struct iovec part = { .iov_base = data, .iov_len = sizeof data };
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control;
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control };
  for (;;) {
    message.msg_controllen = sizeof control;
    ssize_t size = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size == (ssize_t)strlen(word)) break;
    if (size >= 0) fail("recvmsg: not the word");
    wait_for(channel, POLLIN);
  }
  int fd;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
  return fd;
}

static void serve(int listener, int is_each, int count, int round) {
  double start = now_ms();
  int channel = is_each ? -1 : connect_channel();
  for (int i = 0; i < count; i++) {
    int connection = accept_one(listener, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (is_each) {
      if (channel >= 0) close(channel);
      channel = connect_channel();
    }
    send_one(channel, connection);
    close(connection);
  }
  char done;
  while (read(channel, &done, 1) < 0) wait_for(channel, POLLIN);
  double ms = now_ms() - start;
  close(channel);
  printf("{\"event\":\"round %d\",\"pid\":%d,\"perSecond\":%.0f}\n", round, getpid(), count / ms * 1e3);
}

static void receive(int listener, int is_each, int count, int round) {
  int channel = -1;
  for (int i = 0; i < count; i++) {
    if (is_each && channel >= 0) close(channel);
    if (is_each || channel < 0) channel = accept_one(listener, SOCK_NONBLOCK | SOCK_CLOEXEC);
    close(receive_one(channel));
  }
  if (write(channel, "d", 1) != 1) fail("write");
  close(channel);
  printf("{\"event\":\"round %d\",\"pid\":%d}\n", round, getpid());
}

/* Client addresses of 127.0.1.0/24, so that no round runs out of ports. */
static int connect_to(int port, int number) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  struct linger reset = { 1, 0 };
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  struct sockaddr_in from = { .sin_family = AF_INET }, to = { .sin_family = AF_INET, .sin_port = htons(port) };
  from.sin_addr.s_addr = htonl(0x7f000101 + number % 250);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0) fail("bind");
  if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) fail("connect");
  return fd;
}

static int listen_tcp(int *port) {
  struct sockaddr_in address = { .sin_family = AF_INET };
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 4096) != 0) fail("listen");
  getsockname(fd, (struct sockaddr *)&address, &size);
  *port = ntohs(address.sin_port);
  return fd;
}

static int listen_unix(void) {
  struct sockaddr_un address = path_address();
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0) fail("listen");
  return fd;
}

int main(int argument_count, char **arguments) {
  const char role = argument_count > 1 ? arguments[1][0] : 'c';
  int port = 0, listener = role == 's' ? listen_tcp(&port) : role == 'r' ? listen_unix() : -1;
  int round, count, filled = 0, *clients = NULL;
  char mode[8];
  setlinebuf(stdout);
  printf("{\"event\":\"open\",\"pid\":%d,\"port\":%d}\n", getpid(), port);
  while (scanf("%d %7s %d", &round, mode, &count) == 3) {
    int is_each = strcmp(mode, "each") == 0;
    if (role == 's') serve(listener, is_each, count, round);
    else if (role == 'r') receive(listener, is_each, count, round);
    else if (strcmp(mode, "fill") == 0) {
      if (scanf("%d", &port) != 1) fail("port");
      clients = realloc(clients, count * sizeof *clients);
      for (filled = 0; filled < count; filled++) clients[filled] = connect_to(port, filled);
      printf("{\"event\":\"round %d\",\"pid\":%d}\n", round, getpid());
    } else {
      while (filled > 0) close(clients[--filled]);
      printf("{\"event\":\"round %d\",\"pid\":%d}\n", round, getpid());
    }
  }
}
