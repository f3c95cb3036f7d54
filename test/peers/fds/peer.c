/*
 * Descriptors over a Unix socket with sendmsg(2) and recvmsg(2):
 *
 *     peer send|receive stream|seqpacket|dgram PATH BATCHES
 *
 * What it sends and checks is in peer.py beside it; its descriptors are files
 * in memory.
 */

#define _GNU_SOURCE
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST 253

static void must(int is_so, const char *what) {
  if (is_so) return;
  perror(what);
  exit(1);
}

static int holding(int number) {
  char text[16];
  int file = memfd_create("number", MFD_CLOEXEC);
  must(file >= 0, "memfd_create");
  int size = sprintf(text, "%d", number);
  must(pwrite(file, text, size, 0) == size, "pwrite");
  return file;
}

static void send_batch(int peer, int first, int count) {
  unsigned char data[MOST];
  int files[MOST];
  char control[CMSG_SPACE(sizeof files)];
  for (int i = 0; i < count; i++) {
    data[i] = (first + i) % 256;
    files[i] = holding(first + i);
  }
  struct iovec part = {.iov_base = data, .iov_len = count};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
  message.msg_controllen = CMSG_SPACE(count * sizeof(int));
  memset(control, 0, sizeof control);
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(header), files, count * sizeof(int));
  must(sendmsg(peer, &message, MSG_NOSIGNAL) == count, "sendmsg");
  for (int i = 0; i < count; i++) close(files[i]);
}

static void check(int file, int number) {
  char expected[16], text[16];
  int size = sprintf(expected, "%d", number);
  must(read(file, text, sizeof text) == size && memcmp(text, expected, size) == 0, "descriptor holds something else");
  close(file);
}

static void receive_batch(int peer, int first, int count) {
  unsigned char data[4096];
  int files[MOST];
  char control[CMSG_SPACE(sizeof files)];
  struct iovec part = {.iov_base = data, .iov_len = sizeof data};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t size = recvmsg(peer, &message, MSG_CMSG_CLOEXEC);
  must(size == count, "recvmsg: another size");
  must((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0, "recvmsg: truncated");
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  must(header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS, "no SCM_RIGHTS");
  must(header->cmsg_len == CMSG_LEN(count * sizeof(int)), "another number of descriptors");
  must(CMSG_NXTHDR(&message, header) == NULL, "a second control message");
  memcpy(files, CMSG_DATA(header), count * sizeof(int));
  for (int i = 0; i < count; i++) {
    must(data[i] == (first + i) % 256, "another byte");
    check(files[i], first + i);
  }
}

int main(int argc, char **argv) {
  assert(argc == 5);
  int is_sender = strcmp(argv[1], "send") == 0, is_datagram = strcmp(argv[2], "dgram") == 0;
  int type = is_datagram ? SOCK_DGRAM : strcmp(argv[2], "seqpacket") == 0 ? SOCK_SEQPACKET : SOCK_STREAM;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, argv[3], sizeof address.sun_path - 1);
  int peer = socket(AF_UNIX, type | SOCK_CLOEXEC, 0), total = 0;
  must(peer >= 0, "socket");
  alarm(60);
  if (is_sender) {
    must(connect(peer, (struct sockaddr *)&address, sizeof address) == 0, "connect");
  } else {
    must(bind(peer, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(is_datagram || listen(peer, 1) == 0, "listen");
    puts("ready");
    fflush(stdout);
    if (!is_datagram) peer = accept4(peer, NULL, NULL, SOCK_CLOEXEC);
    must(peer >= 0, "accept");
  }
  for (char *batch = strtok(argv[4], ","); batch; batch = strtok(NULL, ",")) {
    int count, size;
    must(sscanf(batch, "%dx%d", &count, &size) == 2, "BATCHES");
    for (; count > 0; count--, total += size) (is_sender ? send_batch : receive_batch)(peer, total, size);
  }
  if (is_sender) return 0;
  char rest;
  must(is_datagram || read(peer, &rest, 1) == 0, "something came after the last message");
  printf("%d descriptors\n", total);
  return 0;
}
