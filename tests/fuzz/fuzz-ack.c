/* fuzz-ack.c - what a backup answers: the source's side of a connection takes it, or fails the backup; only a sound answer for the epoch in flight counts.
 *
 * Input: a byte; 0: the rest comes as it is. Else: u64 generation, epoch, u32 status of answers with right checksums, up to the end. */
#include "store/store-private.h"
#include "fuzz.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static void send_sound(int fd, struct input in)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	while (in.left) {
		struct stream_ack ack = { .generation.n = take(&in, 1), .epoch.n = take(&in, 1), .status = (uint32_t)take(&in, 1) };
		size_t n = stream_put_ack(out, &ack);
		if (send(fd, out, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			return;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct input in = { data, n };
	int pair[2];
	bool sound = take(&in, 1), ended = take(&in, 1) & 1;
	demand(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	struct peer *p = peer_new(&(struct source_backup){ .host = { 2 }, .address = "127.0.0.1", .port = 1 }, NULL);
	p->fd = pair[0];
	p->tls = tls_new(NULL, TLS_CONNECTS, pair[0], NULL);
	demand(tls_handshake(p->tls) == TLS_OPEN);
	p->state = PEER_OPEN;
	p->generation.n = 5;
	p->epoch.n = 9;
	p->active = true;
	p->ended = ended;
	if (sound)
		send_sound(pair[1], in);
	else if (in.left)
		demand(send(pair[1], in.at, in.left, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0);
	peer_event(p, POLLIN);
	demand(!p->acked || ended);
	demand(p->in_used < STREAM_ACK_BYTES && (p->state == PEER_OPEN || p->state == PEER_FAILED));
	close(pair[1]);
	peer_event(p, POLLIN);
	demand(p->state == PEER_FAILED && g_utf8_validate(p->why, -1, NULL));
	peer_free(p);
	return 0;
}
