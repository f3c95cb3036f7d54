/*
 * Stand-ins for examples/forward, in C: "peer server" accepts TCP connections
 * and sends them on, "peer forward" receives and answers them.
 *
 * Environment: HOST, PORT, FORWARD_SOCKET. Every event is one JSON line on
 * stdout. One connection after the other, read once with a blocking call; the
 * control buffer has room for exactly one descriptor.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char word[] = "forward";

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static struct sockaddr_un path_address(void) {
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  strncpy(address.sun_path, setting("FORWARD_SOCKET", "/tmp/forward_demo.sock"), sizeof address.sun_path - 1);
  return address;
}

static void answer(int connection, const char *text) {
  char request[1024];
  ssize_t size = read(connection, request, sizeof request);
  if (size < 0) perror("read");
  if (size > 0 && write(connection, text, strlen(text)) == (ssize_t)strlen(text)) {
    printf("{\"event\":\"answered\",\"pid\":%d,\"runtime\":\"c\",\"request\":\"%.*s\",\"answer\":\"%s\"}\n", getpid(),
           (int)size, request, text);
  }
  close(connection);
}

static int send_connection(int channel, int connection) {
  struct iovec part = { .iov_base = (void *)word, .iov_len = strlen(word) };
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { 0 };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control };
  message.msg_controllen = sizeof control;
  struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(rights), &connection, sizeof(int));
  return sendmsg(channel, &message, MSG_NOSIGNAL) == (ssize_t)strlen(word) ? 0 : -1;
}

static int receive_connection(int channel) {
  char text[64];
  struct iovec part = { .iov_base = text, .iov_len = sizeof text };
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { 0 };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control };
  message.msg_controllen = sizeof control;
  ssize_t size = recvmsg(channel, &message, 0);
  struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
  if (size != (ssize_t)strlen(word) || memcmp(text, word, size) != 0 || !rights ||
      rights->cmsg_type != SCM_RIGHTS || rights->cmsg_len != CMSG_LEN(sizeof(int))) {
    return -1;
  }
  int connection;
  memcpy(&connection, CMSG_DATA(rights), sizeof(int));
  return connection;
}

static int hand_over(int connection) {
  struct sockaddr_un address = path_address();
  int channel = socket(AF_UNIX, SOCK_STREAM, 0);
  int result = connect(channel, (struct sockaddr *)&address, sizeof address);
  if (result == 0) result = send_connection(channel, connection);
  close(channel);
  return result;
}

static void server(void) {
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(setting("PORT", "8080"))) };
  inet_pton(AF_INET, setting("HOST", "127.0.0.1"), &address.sin_addr);
  socklen_t size = sizeof address;
  if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 128) != 0) fail("listen");
  getsockname(listener, (struct sockaddr *)&address, &size);
  printf("{\"event\":\"open\",\"pid\":%d,\"runtime\":\"c\",\"address\":\"127.0.0.1:%d\"}\n", getpid(),
         ntohs(address.sin_port));
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) fail("accept");
    if (hand_over(connection) == 0) close(connection);
    else answer(connection, "process by server");
  }
}

static void forward(void) {
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = path_address();
  if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0) fail("listen");
  printf("{\"event\":\"open\",\"pid\":%d,\"runtime\":\"c\"}\n", getpid());
  for (;;) {
    int channel = accept(listener, NULL, NULL);
    if (channel < 0) fail("accept");
    int connection = receive_connection(channel);
    close(channel);
    if (connection >= 0) answer(connection, "process by forward");
  }
}

int main(int count, char **arguments) {
  setlinebuf(stdout);
  if (count > 1 && strcmp(arguments[1], "server") == 0) server();
  else forward();
}
