/* Router: rare work, each in a program of its own. Called by the programs of router.c, in the same
 * translation unit; never attached. */
#include <dnat/answers.h>
#include <dnat/cut.h>
#include <dnat/parse.h>
#include <dnat/stages.h>
#include <dnat/waiting.h>

/* A fragment ahead of its first one. */
int router_hold(struct __sk_buff *skb)
{
	const struct job *job = current_job();
	struct fragment_key key;

	if (!job)
		return VERDICT_DROP;
	key = job->key;
	return hold(skb, &key);
}

/* A first fragment that others wait for. */
int router_release(struct __sk_buff *skb)
{
	struct job *job = current_job();
	struct fragment_key key;

	if (!job || !parse_addresses(skb, &job->packet) || !parse_ports(skb, &job->packet))
		return VERDICT_DROP;
	key = job->key;
	return release(skb, &job->packet, &key);
}

/* A packet that cannot go on as it is. */
int router_answer(struct __sk_buff *skb)
{
	struct job *job = current_job();

	if (!job || !parse_addresses(skb, &job->packet) || !parse_ports(skb, &job->packet))
		return VERDICT_DROP;
	return answer_or_cut(skb, &job->packet, job);
}

/* A packet that does not fit the way out, but may go in pieces. */
int router_cut(struct __sk_buff *skb)
{
	struct job *job = current_job();

	if (!job || !parse_addresses(skb, &job->packet) || !parse_ports(skb, &job->packet))
		return VERDICT_DROP;
	if (!is_checksum_partial(skb, &job->packet))
		return cut(skb, &job->packet, job->mtu);
	/* The pieces would keep a note of a checksum that is in one of them only. */
	job->whole = true;
	return go_on(skb, STAGE_ANSWER);
}
